package collector

import (
	"container/list"
	"maps"
	"slices"
	"sync"
)

// A trace may have a fifth of all spans, so that a producer with one trace for everything does
// not drive out all others.
const maxTraceShare = 5

// Recent keeps the traces that had a span lately. Beyond its number of spans it drops the trace
// that has had none for longest, whole; a trace that would take more than a fifth of the room
// loses the older half of its spans. A span takes about 1.8 KiB. It is safe for concurrent use.
type Recent struct {
	most int

	mu     sync.Mutex // guards what follows
	traces map[string]*list.Element
	order  *list.List // of *recentTrace, the one with the newest span last
	count  int        // of spans
}

type recentTrace struct {
	id    string
	spans []Span // as they came
}

// NewRecent returns one that keeps at most most spans, of which there must be 10 or more.
func NewRecent(most int) *Recent {
	return &Recent{most: most, traces: map[string]*list.Element{}, order: list.New()}
}

// Add takes spans.
func (r *Recent) Add(spans []Span) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range spans {
		r.add(spans[i])
	}
	for r.count > r.most {
		oldest := r.order.Front()
		r.count -= len(oldest.Value.(*recentTrace).spans)
		delete(r.traces, oldest.Value.(*recentTrace).id)
		r.order.Remove(oldest)
	}
}

func (r *Recent) add(s Span) {
	element := r.traces[s.TraceID]
	if element == nil {
		element = r.order.PushBack(&recentTrace{id: s.TraceID})
		r.traces[s.TraceID] = element
	}
	r.order.MoveToBack(element)
	t := element.Value.(*recentTrace)
	t.spans = append(t.spans, s)
	r.count++
	if share := r.most / maxTraceShare; len(t.spans) > share {
		gone := len(t.spans) - share/2 // half at a time, so that no span is moved often
		t.spans = slices.Clone(t.spans[gone:])
		r.count -= gone
	}
}

// Trace returns the spans of a trace that have come so far, by their beginning.
func (r *Recent) Trace(id string) []Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	element := r.traces[id]
	if element == nil {
		return nil
	}
	return element.Value.(*recentTrace).sorted()
}

func (t *recentTrace) sorted() []Span {
	return slices.SortedStableFunc(slices.Values(t.spans), func(a, b Span) int { return a.Start.Compare(b.Start) })
}

// Find returns the newest traces of which some span matches, at most limit, the one with the
// newest span first; the spans of each by their beginning. match must not keep or change the span.
func (r *Recent) Find(limit int, match func(*Span) bool) (traces [][]Span) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for element := r.order.Back(); element != nil && len(traces) < limit; element = element.Prev() {
		if t := element.Value.(*recentTrace); t.has(match) {
			traces = append(traces, t.sorted())
		}
	}
	return traces
}

func (t *recentTrace) has(match func(*Span) bool) bool {
	for i := range t.spans {
		if match(&t.spans[i]) {
			return true
		}
	}
	return false
}

// Services are the names of the services that have spans here, sorted.
func (r *Recent) Services() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	names := map[string]bool{}
	for element := r.order.Front(); element != nil; element = element.Next() {
		for i := range element.Value.(*recentTrace).spans {
			names[element.Value.(*recentTrace).spans[i].Service] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// Spans returns all spans that are kept.
func (r *Recent) Spans() (spans []Span) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for element := r.order.Front(); element != nil; element = element.Next() {
		spans = append(spans, element.Value.(*recentTrace).spans...)
	}
	return spans
}
