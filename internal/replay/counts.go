package replay

import (
	"maps"
	"slices"
	"sync"

	"github.com/waybillhq/waybill/pipeline"
)

// maxTypes bounds the types that are counted apart; otherTypes is the rest.
const (
	maxTypes   = 1000
	otherTypes = "(other types)"
	// maxExamples is how many refused events are named.
	maxExamples = 10
)

// Counts are what became of the events of a replay; of a dry run, how many there are.
type Counts struct {
	Events   int64            `json:"events"` // delivered; of a dry run, that would be
	Lanes    map[int]int64    `json:"lanes"`  // of Events
	Types    map[string]int64 `json:"types"`  // of Events
	Refused  int64            `json:"refused"`
	Refusals map[string]int64 `json:"refusals,omitempty"` // by the sink's code
	Examples []Refusal        `json:"examples,omitempty"` // the first refused ones
	Requests int64            `json:"requests"`           // that were sent, repeats included
	Repeated int64            `json:"repeated"`           // of Requests
	Missing  []string         `json:"missing,omitempty"`  // what the source lacks
}

// Refusal is an event that the sink refused.
type Refusal struct {
	Source string `json:"source"`
	Type   string `json:"type"`
	ID     string `json:"id"`
	Code   string `json:"code"`
	Reason string `json:"reason"`
}

func newCounts() Counts {
	return Counts{Lanes: map[int]int64{}, Types: map[string]int64{}, Refusals: map[string]int64{}}
}

func (c Counts) clone() Counts {
	c.Lanes, c.Types, c.Refusals = maps.Clone(c.Lanes), maps.Clone(c.Types), maps.Clone(c.Refusals)
	c.Examples = append([]Refusal(nil), c.Examples...)
	c.Missing = append([]string(nil), c.Missing...)
	return c
}

// lack adds what a source lacks, unless it is known.
func (c *Counts) lack(faults []string) {
	for _, fault := range faults {
		if !slices.Contains(c.Missing, fault) {
			c.Missing = append(c.Missing, fault)
		}
	}
}

func (c *Counts) count(lane int, typ string) {
	c.Events++
	c.Lanes[lane]++
	if _, known := c.Types[typ]; !known && len(c.Types) >= maxTypes {
		typ = otherTypes
	}
	c.Types[typ]++
}

// tally is Counts that several goroutines add to.
type tally struct {
	mu     sync.Mutex // guards counts
	counts Counts
}

func (t *tally) add(change func(*Counts)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	change(&t.counts)
}

func (t *tally) snapshot() Counts {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.counts.clone()
}

// outcome takes note of the final results of the items of a request.
func (c *Counts) outcome(r *request, results []pipeline.Result) {
	for i, result := range results {
		if result.Verdict == pipeline.Delivered {
			c.count(r.lane, r.types[i])
			continue
		}
		c.Refused++
		c.Refusals[result.Code]++
		if len(c.Examples) < maxExamples {
			c.Examples = append(c.Examples, Refusal{
				Source: r.sources[i], Type: r.types[i], ID: pipeline.IDOf(r.items[i].Encoded()), Code: result.Code, Reason: result.Reason,
			})
		}
	}
}
