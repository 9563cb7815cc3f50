package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// sender sends one call and says what became of it.
type sender interface {
	send(ctx context.Context, source, id string) outcome
	close() error
}

// outcome is what became of a call.
type outcome struct {
	accepted, refused bool
	after             time.Duration // how long a refused producer was told to wait
	err               error         // neither of the two
	givenUp           bool          // the producer lost patience
}

// wave is many producers at once.
type wave struct {
	name                   string
	producers, connections int
	open                   func(sys *system) ([]sender, error) // one per connection
}

func waves(producers int) []wave {
	own := func(open func(*system, int) (sender, error)) func(*system) ([]sender, error) {
		return func(sys *system) ([]sender, error) { return openAll(sys, producers, open) }
	}
	return []wave{
		{"http", producers, producers, own(openHTTP)},
		{"grpc", producers, producers, own(openGRPC)},
		{"grpc-shared", min(300, producers), 3, func(sys *system) ([]sender, error) { return openAll(sys, 3, openGRPC) }},
	}
}

func openAll(sys *system, n int, open func(*system, int) (sender, error)) ([]sender, error) {
	var all []sender
	for i := range n {
		s, err := open(sys, i)
		if err != nil {
			return all, err
		}
		all = append(all, s)
	}
	return all, nil
}

// result is what became of a wave's calls.
type result struct {
	accepted, refused, givenUp int

	bySource map[string]int // accepted calls
	unknown  map[string]bool
	errs     map[string]int
}

const (
	// grace is how long after a wave's end a call that is under way may still end; then its
	// producer gives it up, as one that loses patience does.
	grace = 3 * time.Second
	// slowest is how much longer they wait for the first call that is accepted: on a loaded
	// machine it takes as long as it takes.
	slowest = time.Minute
)

// send lets every producer send one call after another until length has passed.
func (w wave) send(ctx context.Context, sys *system, length time.Duration) (*result, error) {
	senders, err := w.open(sys)
	defer func() {
		for _, s := range senders {
			_ = s.close()
		}
	}()
	if err != nil {
		return nil, err
	}
	r := &result{bySource: map[string]int{}, unknown: map[string]bool{}, errs: map[string]int{}}
	var mu sync.Mutex
	var wg sync.WaitGroup
	begin, accepted := make(chan struct{}), make(chan struct{})
	accept := sync.OnceFunc(func() { close(accepted) })
	patience, giveUp := context.WithCancel(ctx) // and not a deadline, which calls would see before it is over
	defer giveUp()
	for i := range w.producers {
		source := fmt.Sprintf("/flood/%s/%d", w.name, i)
		wg.Go(func() {
			<-begin
			until := time.Now().Add(length)
			for n := 0; time.Now().Before(until) && ctx.Err() == nil; n++ {
				o := senders[i%len(senders)].send(patience, source, fmt.Sprint(n))
				o.givenUp = patience.Err() != nil
				if o.accepted {
					accept()
				}
				mu.Lock()
				r.add(source, o)
				mu.Unlock()
				if o.after > 0 && !sleep(ctx, min(o.after, time.Until(until))) {
					return
				}
			}
		})
	}
	close(begin)
	go func() {
		defer giveUp()
		if !sleep(patience, length+grace) {
			return
		}
		select {
		case <-accepted:
		case <-time.After(slowest):
		case <-patience.Done():
		}
	}()
	wg.Wait()
	return r, ctx.Err()
}

func (r *result) add(source string, o outcome) {
	switch {
	case o.accepted:
		r.accepted++
		r.bySource[source]++
	case o.refused:
		r.refused++
	case o.givenUp:
		r.givenUp++
		r.unknown[source] = true
	default:
		r.errs[o.err.Error()]++
		r.unknown[source] = true
	}
}

// check reports what should not have happened.
func (r *result) check(name string) []error {
	var failures []error
	if r.accepted == 0 {
		failures = append(failures, fmt.Errorf("%s: no call was accepted", name))
	}
	for text, n := range r.errs {
		failures = append(failures, fmt.Errorf("%s: %d calls failed: %s", name, n, text))
	}
	slices.SortFunc(failures, func(a, b error) int { return len(a.Error()) - len(b.Error()) })
	return failures
}

// smallProducers says how long 100 small calls take after a flood, over both ways in, each
// again as it is told to.
func smallProducers(ctx context.Context, sys *system) (time.Duration, error) {
	const each = 50
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, 2*each)
	for i := range 2 * each {
		wg.Go(func() { errs[i] = sys.sendSmall(ctx, i) })
	}
	wg.Wait()
	return time.Since(began), errors.Join(errs...)
}

// sleep reports whether ctx lives after d.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
