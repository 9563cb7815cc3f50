package pipeline

import (
	"fmt"
	"sync"
	"time"
)

// doneCalls calls the functions that were given to EmitAsync, one at a time, in the order in which
// their events were answered. So one that is slow holds up the others and never the
// transactions: what has not returned counts towards limit, and beyond it nothing more is taken.
//
// There is a goroutine only while there is something to call.
type doneCalls struct {
	limit int

	mu      sync.Mutex // guards what follows
	taken   int        // reserved, and not returned yet
	queue   []*asyncEvent
	spare   []*asyncEvent // the memory of an earlier queue
	calling bool
	closed  bool
	idle    chan struct{} // closed when taken is 0; nil: nobody waits for that
}

// reserve makes room for one call, or says why there is none.
func (c *doneCalls) reserve() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return ErrStopping
	case c.taken == c.limit:
		return fmt.Errorf("%w: %d events of EmitAsync have no answer, or their done has not returned", ErrOverloaded, c.taken)
	}
	c.taken++
	return nil
}

// add queues a call for which there is room. It never blocks.
func (c *doneCalls) add(a *asyncEvent) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queue = append(c.queue, a)
	if !c.calling {
		c.calling = true
		go c.run()
	}
}

// run calls until nothing is queued.
func (c *doneCalls) run() {
	for {
		batch := c.next()
		if batch == nil {
			return
		}
		c.call(batch)
	}
}

// next takes what is queued, or nil if this goroutine may end.
func (c *doneCalls) next() []*asyncEvent {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) == 0 {
		c.calling = false
		return nil
	}
	batch := c.queue
	c.queue, c.spare = c.spare[:0], nil
	return batch
}

// call makes the calls of a batch. One that ends the goroutine, as a test's FailNow does, takes
// nobody's answer with it.
func (c *doneCalls) call(batch []*asyncEvent) {
	next, done := 0, false
	defer func() {
		if !done { // the goroutine ends, or the program panics
			go func() {
				c.call(batch[next:])
				c.run()
			}()
		}
	}()
	for next < len(batch) {
		a := batch[next]
		batch[next] = nil
		next++
		c.callOne(a)
	}
	done = true
	c.mu.Lock()
	c.spare = batch[:0]
	c.mu.Unlock()
}

func (c *doneCalls) callOne(a *asyncEvent) {
	defer c.returned()
	a.call()
}

func (c *doneCalls) returned() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.taken--
	if c.taken == 0 && c.idle != nil {
		close(c.idle)
		c.idle = nil
	}
}

// finish takes no more, and waits until all have returned, or for as long as within. Those that
// have not are called all the same, later.
func (c *doneCalls) finish(within time.Duration) error {
	c.mu.Lock()
	c.closed = true
	if c.taken == 0 {
		c.mu.Unlock()
		return nil
	}
	idle := make(chan struct{})
	c.idle = idle
	c.mu.Unlock()
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case <-idle:
		return nil
	case <-timer.C:
		taken := c.fill()
		return fmt.Errorf("stop: after %v the done functions of %d events have not returned; the rest are called when the one that holds them up returns", within, taken)
	}
}

// fill returns how many calls are reserved.
func (c *doneCalls) fill() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.taken
}
