package waybilltest

import (
	"sync"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
)

// received is what came to the endpoint, each event once, in the order of their first arrivals.
type received struct {
	mu      sync.Mutex // guards what follows
	events  []arrival
	index   map[[2]string]int // of an event by source and id
	changed chan struct{}     // closed, and made anew, when something comes
}

type arrival struct {
	ce    *pb.CloudEvent
	event Event
}

func newReceived() *received {
	return &received{index: map[[2]string]int{}, changed: make(chan struct{})}
}

// take is endpoint.Config.Taken.
func (r *received) take(events []*pb.CloudEvent) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, ce := range events {
		key := [2]string{ce.GetSource(), ce.GetId()}
		if at, again := r.index[key]; again {
			r.events[at].event.Deliveries++
			continue
		}
		e := newEvent(ce)
		e.ReceivedAt, e.Deliveries = now, 1
		r.index[key] = len(r.events)
		r.events = append(r.events, arrival{ce, e})
	}
	close(r.changed)
	r.changed = make(chan struct{})
}

// split returns the events that match and those that do not, and what is closed when there may be more.
func (r *received) split(f Filter) (matching, other []Event, changed <-chan struct{}) {
	r.mu.Lock()
	all, changed := r.events[:len(r.events):len(r.events)], r.changed
	copied := make([]arrival, len(all))
	copy(copied, all)
	r.mu.Unlock()
	for _, a := range copied { // without the lock: the filter calls back
		if f.matches(a.ce, a.event) {
			matching = append(matching, a.event)
		} else {
			other = append(other, a.event)
		}
	}
	return matching, other, changed
}
