package main

import "sync/atomic"

// retries counts what producers had to send again. It is safe for concurrent use.
type retries struct{ tries, events atomic.Int64 }

func (r *retries) add(left int, _ error) {
	r.tries.Add(1)
	r.events.Add(int64(left))
}
