package roundtrip

import (
	"context"
	"math/rand/v2"
	"time"
)

// dealer puts the events of one ingest's keys into calls: one for each, so that an ingest
// that does not answer does not keep the others waiting.
type dealer struct {
	plan  Plan
	to    int // which ingest
	of    int // how many
	stop  <-chan struct{}
	pause time.Duration // per event; 0: none
	next  time.Time     // when the next call is due
}

// maxLag is how much a dealer that was held up makes up for: more would be a burst.
const maxLag = 100 * time.Millisecond

func newDealer(config SenderConfig, plan Plan, to int) *dealer {
	d := &dealer{plan: plan, to: to, of: len(config.HTTP) + len(config.Emitters), stop: config.Stop, next: time.Now()}
	if config.Rate > 0 {
		d.pause = time.Duration(float64(time.Second) * float64(d.of) / config.Rate)
	}
	return d
}

// deal gives calls to a queue until the plan ends or it is told to stop.
func (d *dealer) deal(ctx context.Context, queue chan<- call) error {
	r := rand.New(rand.NewPCG(d.plan.Seed, 1<<63|uint64(d.to)))
	open, size := call{}, 0
	for index := range d.plan.Events {
		if route(d.plan, index, d.of) != d.to {
			continue
		}
		if len(open.indexes) == 0 {
			open.way = chooseWay(r)
			size = open.way.callEvents(r)
		}
		open.indexes = append(open.indexes, index)
		if len(open.indexes) < size {
			continue
		}
		if more, err := d.put(ctx, queue, open); err != nil || !more {
			return err
		}
		open = call{}
	}
	if len(open.indexes) == 0 {
		return nil
	}
	_, err := d.put(ctx, queue, open)
	return err
}

// put gives a call to the queue when it is due. It reports false when it was told to stop.
func (d *dealer) put(ctx context.Context, queue chan<- call, c call) (more bool, err error) {
	due := time.NewTimer(time.Until(d.next))
	defer due.Stop()
	select {
	case <-due.C:
	case <-d.stop:
		return false, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
	select {
	case queue <- c:
	case <-d.stop:
		return false, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
	if earliest := time.Now().Add(-maxLag); d.next.Before(earliest) {
		d.next = earliest
	}
	d.next = d.next.Add(time.Duration(len(c.indexes)) * d.pause)
	return true, nil
}
