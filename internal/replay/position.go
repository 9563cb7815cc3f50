package replay

import (
	"maps"
	"sync"
)

// position is how far a replay has come.
type position struct {
	// Floor of the stream: whatever lies up to this sequence is done with.
	Floor uint64 `json:"floor,omitempty"`
	// Lanes are the positions up to which a lane is done with, which may be beyond the floor.
	Lanes map[int]uint64 `json:"lanes,omitempty"`
}

// tracker knows how far a replay has come. It is safe for concurrent use.
type tracker struct {
	mu sync.Mutex // guards what follows
	// read is the newest position of the stream that was read.
	read uint64
	done map[int]uint64
	// open are, of each lane, the first positions of the requests that are gathered or under way, in
	// their order.
	open map[int][]uint64
}

func newTracker(from position) *tracker {
	t := &tracker{read: from.Floor, done: map[int]uint64{}, open: map[int][]uint64{}}
	maps.Copy(t.done, from.Lanes)
	return t
}

// begin takes note of a new request of a lane, whose first portion is at a position.
func (t *tracker) begin(lane int, at uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open[lane] = append(t.open[lane], at)
}

// end takes note that the oldest request of a lane is done with, whose last portion is at a position.
func (t *tracker) end(lane int, at uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done[lane] = at
	t.open[lane] = t.open[lane][1:]
}

// passed takes note that all up to a sequence was read.
func (t *tracker) passed(at uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.read = max(t.read, at)
}

func (t *tracker) position() position {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := position{Floor: t.read, Lanes: maps.Clone(t.done)}
	for _, open := range t.open {
		if len(open) > 0 && open[0] <= p.Floor {
			p.Floor = open[0] - 1
		}
	}
	return p
}
