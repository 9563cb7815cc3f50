package expect

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/waybillhq/waybill/pipeline"
)

// Progress is how far the events that somebody waits for have come.
type Progress struct {
	Met      bool     `json:"met"`
	Expected int      `json:"expected"`
	Sinks    []string `json:"sinks"`
	// Delivered events reached all of the sinks. Seen ones were queued and match.
	Delivered int `json:"delivered"`
	Seen      int `json:"seen"`
	// Waiting events did not reach the sink yet, and Dead ones are its dead letters, by sink.
	Waiting map[string]int `json:"waiting,omitempty"`
	Dead    map[string]int `json:"dead_letters,omitempty"`
	Seconds float64        `json:"took_seconds"`
}

// watched is an event that matches and is not known to be delivered.
type watched struct {
	// batches that it is in: of one that was requeued that of the requeue too, which waits for one sink,
	// while the first may still wait for others.
	batches []pipeline.BatchID
	letter  pipeline.BatchID // of its dead letters: that which it was in first
	at      int64            // its position in that
}

// Watch collects events, each once, and finds out which of them are settled. Its methods are safe for concurrent use.
type Watch struct {
	mu   sync.Mutex // guards what follows
	seen map[int64]bool
	open map[int64]watched // by position in the batch that it was in first
}

// NewWatch returns one that has seen nothing.
func NewWatch() *Watch {
	return &Watch{seen: map[int64]bool{}, open: map[int64]watched{}}
}

// See takes an event of a batch in.
func (w *Watch) See(b pipeline.TailedBatch, index int) {
	e := watched{letter: b.ID, at: b.Position(index)}
	if b.Origin != nil {
		e.letter, e.at = b.Origin.Batch, pipeline.Position(b.Origin.Batch.Number, b.Origin.Index)
	}
	e.batches = []pipeline.BatchID{e.letter} // also where the stream has only the requeue of it
	w.mu.Lock()
	defer w.mu.Unlock()
	before, isOpen := w.open[e.at]
	if w.seen[e.at] && !isOpen {
		return // it is delivered
	}
	if isOpen {
		e = before
	}
	if !slices.Contains(e.batches, b.ID) {
		e.batches = append(slices.Clone(e.batches), b.ID) // Settle reads the old ones meanwhile
	}
	w.seen[e.at], w.open[e.at] = true, e
}

// Settle asks Postgres what became of the open events, and adds those that reached all sinks to
// p.Delivered. What waits is asked for before the dead letters: what a sink refused becomes one in
// the transaction in which it waits no more.
func (w *Watch) Settle(ctx context.Context, store *pipeline.Store, sinks []string, p *Progress) error {
	w.mu.Lock()
	open := maps.Clone(w.open)
	p.Seen = len(w.seen)
	w.mu.Unlock()
	batches, letters := map[pipeline.BatchID]bool{}, map[pipeline.BatchID]bool{}
	for _, e := range open {
		letters[e.letter] = true
		for _, b := range e.batches {
			batches[b] = true
		}
	}
	waits, err := store.WaitsFor(ctx, slices.Collect(maps.Keys(batches)))
	if err != nil {
		return err
	}
	refused, err := store.Refused(ctx, slices.Collect(maps.Keys(letters)))
	if err != nil {
		return err
	}
	p.Waiting, p.Dead = map[string]int{}, map[string]int{}
	for at, e := range open {
		delivered := true
		for _, sink := range sinks {
			switch {
			case slices.ContainsFunc(e.batches, func(b pipeline.BatchID) bool { return slices.Contains(waits[b], sink) }):
				p.Waiting[sink]++
				delivered = false
			case slices.Contains(refused[at], sink):
				p.Dead[sink]++
				delivered = false
			}
		}
		if delivered {
			p.Delivered++
			w.mu.Lock()
			delete(w.open, at)
			w.mu.Unlock()
		}
	}
	return nil
}

// Text says in a line how far they came.
func (p Progress) Text() string {
	text := fmt.Sprintf("%d of %s delivered to %s", p.Delivered, events(p.Expected), strings.Join(p.Sinks, " and "))
	if p.Delivered >= p.Expected {
		return text + fmt.Sprintf(" after %.1f s", p.Seconds)
	}
	if lacks := p.Lacks(); lacks != "" {
		text += "; " + lacks
	}
	if p.Seen < p.Expected {
		text += fmt.Sprintf("; %d that match came", p.Seen)
	}
	return text
}

// Lacks says which sinks lack how many, and how many are dead letters; empty: none.
func (p Progress) Lacks() string {
	var parts []string
	for _, sink := range p.Sinks {
		if n := p.Waiting[sink]; n > 0 {
			parts = append(parts, fmt.Sprintf("%s lacks %d", sink, n))
		}
		switch n := p.Dead[sink]; {
		case n == 1:
			parts = append(parts, "1 event is a dead letter of "+sink)
		case n > 1:
			parts = append(parts, fmt.Sprintf("%d events are dead letters of %s", n, sink))
		}
	}
	return strings.Join(parts, "; ")
}

// events is a number of them in words.
func events(n int) string {
	if n == 1 {
		return "1 event"
	}
	return fmt.Sprintf("%d events", n)
}
