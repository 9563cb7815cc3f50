package waybilltest

import (
	"slices"
	"sync"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
)

// received is what came to the endpoint, each event once, in the order of their first arrivals.
type received struct {
	mu      sync.Mutex // guards what follows
	events  []Event
	index   map[identity]int
	changed chan struct{} // closed, and made anew, when something comes
}

// identity tells accepted events apart. Those of one id are several where something else says which are the same one
// (WithDedupeAttribute).
type identity struct {
	source, typ, id string
	seqnum          int64
}

func newReceived() *received {
	return &received{index: map[identity]int{}, changed: make(chan struct{})}
}

// take is endpoint.Config.Taken.
func (r *received) take(events []*pb.CloudEvent) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, ce := range events {
		e := newEvent(ce)
		id := identity{e.Source, e.Type, e.ID, e.Seqnum}
		if at, again := r.index[id]; again {
			r.events[at].Deliveries++
			continue
		}
		e.ReceivedAt, e.Deliveries = now, 1
		r.index[id] = len(r.events)
		r.events = append(r.events, e)
	}
	close(r.changed)
	r.changed = make(chan struct{})
}

// split returns the events that match and those that do not, and what is closed when there may be more.
func (r *received) split(f Filter) (matching, other []Event, changed <-chan struct{}) {
	r.mu.Lock()
	all, changed := slices.Clone(r.events), r.changed
	r.mu.Unlock()
	for _, e := range all { // without the lock: the filter calls back
		if f.matches(e) {
			matching = append(matching, e)
		} else {
			other = append(other, e)
		}
	}
	return matching, other, changed
}
