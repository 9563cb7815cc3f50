package pipeline

import (
	"slices"
	"sync"
	"time"
)

// Vacancy is a lane of a sink that no forwarder holds.
type Vacancy struct {
	SinkLane
	// Since is when this process first saw it so, by its clock.
	Since time.Time `json:"since"`
}

// vacancies keeps which lanes of a forwarder's sinks nobody holds, and since when. A lane
// that moves is vacant for a moment, and that of a dead forwarder until its lease expires:
// only what lasts is a problem. It is safe for concurrent use.
type vacancies struct {
	mu    sync.Mutex // guards what follows
	since map[SinkLane]time.Time
	limit time.Duration // the longest that is no problem
}

// see takes note of a look at the leases: vacant is all that nobody holds now.
func (v *vacancies) see(vacant []SinkLane, limit time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	before := v.since
	v.since, v.limit = make(map[SinkLane]time.Time, len(vacant)), limit
	for _, p := range vacant {
		since, ok := before[p]
		if !ok {
			since = time.Now()
		}
		v.since[p] = since
	}
}

// lasting returns what nobody has held for longer than the limit, by lane and sink.
func (v *vacancies) lasting() []Vacancy {
	v.mu.Lock()
	defer v.mu.Unlock()
	var all []Vacancy
	for p, since := range v.since {
		if time.Since(since) > v.limit {
			all = append(all, Vacancy{SinkLane: p, Since: since.UTC()})
		}
	}
	slices.SortFunc(all, func(a, b Vacancy) int { return compareSinkLanes(a.SinkLane, b.SinkLane) })
	return all
}

// bySink counts what lasts.
func (v *vacancies) bySink() map[string]int64 {
	out := map[string]int64{}
	for _, vacancy := range v.lasting() {
		out[vacancy.Sink]++
	}
	return out
}
