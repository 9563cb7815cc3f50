package replay

import (
	"context"
	"sync"
	"time"
)

// pacer keeps events to a rate. It is safe for concurrent use.
type pacer struct {
	each time.Duration // per event; 0: no limit

	mu   sync.Mutex // guards next
	next time.Time  // when the next request may go
}

func newPacer(rate float64) *pacer {
	if rate <= 0 {
		return &pacer{}
	}
	return &pacer{each: time.Duration(float64(time.Second) / rate)}
}

// wait returns when n events may go. Those after them wait for as long as n take.
func (p *pacer) wait(ctx context.Context, n int) error {
	if p.each == 0 {
		return ctx.Err()
	}
	p.mu.Lock()
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	until := p.next
	p.next = p.next.Add(time.Duration(n) * p.each)
	p.mu.Unlock()
	return sleep(ctx, time.Until(until))
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
