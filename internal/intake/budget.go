package intake

import (
	"context"
	"sync/atomic"

	"golang.org/x/sync/semaphore"
)

// requestOverhead is charged for an HTTP request beside its body, for headers and
// bookkeeping.
const requestOverhead = 4 << 10

// Budget bounds the bytes that requests hold. Those who cannot wait are refused; a
// stream, whose client feels a pause as flow control, waits. While a stream waits nobody
// else gets anything, so that it is not starved: it asks for one event's size at most.
type Budget struct {
	size int64
	free *semaphore.Weighted
	used atomic.Int64 // follows free closely; for decisions that may be off by a request
}

// NewBudget returns a budget of size bytes.
func NewBudget(size int64) *Budget {
	return &Budget{size: size, free: semaphore.NewWeighted(size)}
}

// TryAcquire takes n bytes, or nothing and false.
func (b *Budget) TryAcquire(n int64) bool {
	if !b.free.TryAcquire(n) {
		return false
	}
	b.used.Add(n)
	return true
}

// Acquire takes n bytes, and waits for them until ctx ends.
func (b *Budget) Acquire(ctx context.Context, n int64) error {
	if err := b.free.Acquire(ctx, n); err != nil {
		return err
	}
	b.used.Add(n)
	return nil
}

// Release gives n bytes back.
func (b *Budget) Release(n int64) {
	b.used.Add(-n)
	b.free.Release(n)
}

// Used returns how many bytes are taken.
func (b *Budget) Used() int64 { return b.used.Load() }

// Size returns how many bytes there are.
func (b *Budget) Size() int64 { return b.size }

// hasRoom reports whether n more bytes would fit just now.
func (b *Budget) hasRoom(n int64) bool { return b.Used()+n <= b.size }

// reservation is what one request holds of a budget. It belongs to one goroutine.
type reservation struct {
	budget *Budget
	held   int64
}

// reserve takes n bytes; false means that they are not to be had.
func (b *Budget) reserve(n int64) (*reservation, bool) {
	if !b.TryAcquire(n) {
		return nil, false
	}
	return &reservation{budget: b, held: n}, true
}

// resize makes the reservation n bytes; false leaves it as it was.
func (r *reservation) resize(n int64) bool {
	switch {
	case n > r.held:
		if !r.budget.TryAcquire(n - r.held) {
			return false
		}
	case n < r.held:
		r.budget.Release(r.held - n)
	}
	r.held = n
	return true
}

// release gives everything back; a second call does nothing.
func (r *reservation) release() { r.resize(0) }
