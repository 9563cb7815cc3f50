package pipeline

import "sync/atomic"

// outlet is a sink as this process sees it: what its workers in all lanes share. It is
// safe for concurrent use.
type outlet struct {
	sink    Sink
	limits  Limits
	breaker *breaker
	slots   chan struct{} // one for each request in flight
	metrics *sinkMetrics
	memory  int          // bytes that the workers together may hold
	workers atomic.Int32 // that there are
	lanes   atomic.Int32 // that are this process's to take
}

// minShare is what a worker may hold however many there are: at 256 lanes, 64 MiB a sink.
const minShare = 256 << 10

// share is how many bytes each of the workers may hold. Lanes that are still to be taken count:
// what the first workers pulled for themselves the later ones could not have back.
func (o *outlet) share() int {
	return max(o.memory/max(int(o.workers.Load()), int(o.lanes.Load()), 1), minShare)
}
