package intake

import (
	"container/list"
	"context"
	"sync"

	"github.com/waybillhq/waybill/pipeline"
)

// requestOverhead is charged for an HTTP request beside its body, for headers and
// bookkeeping.
const requestOverhead = 4 << 10

// Budget bounds the bytes that requests hold. Those who cannot wait are refused at once.
// Those who can wait, in one line: gRPC messages, whose client feels that as flow control.
//
// Neither keeps the other out. Those who wait get at most their share of the budget, so the
// rest is always there for those who do not; and while somebody waits, those who do not
// get at most the rest, so the wait ends.
type Budget struct {
	size, share int64

	mu      sync.Mutex // guards what follows
	used    int64
	patient int64     // of used, what those hold who can wait
	line    list.List // of *waiter, in the order of their coming
}

// waiter is one who waits for n bytes.
type waiter struct {
	n     int64
	ready chan struct{} // closed when it has them
}

// NewBudget returns a budget of size bytes. Those who can wait get at most share of them
// together.
func NewBudget(size, share int64) *Budget {
	return &Budget{size: size, share: min(share, size)}
}

// TryAcquire takes n bytes, or nothing and false.
func (b *Budget) TryAcquire(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used+n > b.size {
		return false
	}
	if b.line.Len() > 0 && b.used-b.patient+n > b.size-b.share {
		return false
	}
	b.used += n
	return true
}

// Acquire takes n bytes, which must not be more than the share, and waits for them until
// ctx ends.
func (b *Budget) Acquire(ctx context.Context, n int64) error {
	b.mu.Lock()
	if b.line.Len() == 0 && b.fits(n) {
		b.take(n)
		b.mu.Unlock()
		return nil
	}
	w := &waiter{n: n, ready: make(chan struct{})}
	place := b.line.PushBack(w)
	b.mu.Unlock()
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-w.ready: // both at once: it has them
		return nil
	default:
	}
	b.line.Remove(place)
	b.serve() // those behind may want less
	return ctx.Err()
}

// fits and take are of those who can wait. The caller holds b.mu.
func (b *Budget) fits(n int64) bool { return b.used+n <= b.size && b.patient+n <= b.share }

func (b *Budget) take(n int64) {
	b.used += n
	b.patient += n
}

// serve gives the first in line what they wait for, as far as it goes. The caller holds
// b.mu.
func (b *Budget) serve() {
	for first := b.line.Front(); first != nil; first = b.line.Front() {
		w := first.Value.(*waiter)
		if !b.fits(w.n) {
			return
		}
		b.take(w.n)
		b.line.Remove(first)
		close(w.ready)
	}
}

// Release gives back n bytes that TryAcquire took.
func (b *Budget) Release(n int64) { b.release(n, 0) }

// release gives back n bytes, of which Acquire took patient.
func (b *Budget) release(n, patient int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= n
	b.patient -= patient
	b.serve()
}

// Used returns how many bytes are taken.
func (b *Budget) Used() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// Size returns how many bytes there are.
func (b *Budget) Size() int64 { return b.size }

// Waiting returns how many wait.
func (b *Budget) Waiting() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.line.Len()
}

// hasRoom reports whether n more bytes would fit just now.
func (b *Budget) hasRoom(n int64) bool { return b.Used()+n <= b.size }

// reservation is what one request holds of a budget. It belongs to one goroutine.
type reservation struct {
	budget *Budget
	held   int64
	waits  bool // it was waited for, and counts so as it shrinks
}

// reserve takes n bytes; false means that they are not to be had.
func (b *Budget) reserve(n int64) (*reservation, bool) {
	if !b.TryAcquire(n) {
		return nil, false
	}
	return &reservation{budget: b, held: n}, true
}

// await takes n bytes as soon as they are to be had.
func (b *Budget) await(ctx context.Context, n int64) (*reservation, error) {
	if err := b.Acquire(ctx, n); err != nil {
		return nil, err
	}
	return &reservation{budget: b, held: n, waits: true}, nil
}

// resize makes the reservation n bytes; false leaves it as it was. One that was waited for
// can only shrink.
func (r *reservation) resize(n int64) bool {
	switch {
	case n > r.held && (r.waits || !r.budget.TryAcquire(n-r.held)):
		return false
	case n < r.held && r.waits:
		r.budget.release(r.held-n, r.held-n)
	case n < r.held:
		r.budget.release(r.held-n, 0)
	}
	r.held = n
	return true
}

// release gives everything back; a second call does nothing.
func (r *reservation) release() { r.resize(0) }

// Buffers says how full the bounds of what requests hold are.
func (g *GRPC) Buffers() []pipeline.Buffer {
	budget := g.intake.budget
	return []pipeline.Buffer{
		{Name: "bytes of requests", Unit: "bytes", Used: budget.Used(), Limit: budget.Size()},
		{Name: "first windows of gRPC calls", Unit: "bytes", Used: g.governor.Windows(), Limit: g.intake.config.WindowBytes},
	}
}
