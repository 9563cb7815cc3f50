package sinks

import (
	"context"
	"fmt"
	"slices"

	"github.com/waybillhq/waybill/pipeline"
)

const (
	// codeMalformedEvent is the code of an event whose encoding cannot be read.
	codeMalformedEvent = "MALFORMED_EVENT"
	// codeHeldInPart is the code of an event of whose batch the lane holds others, and not this one: a
	// batch stands in one object, and what is left of it has no place.
	codeHeldInPart = "HELD_IN_PART"
)

// archiveRequest is what one Send has to archive: whole batches, unless it may be parts of some, and
// what is to be appended of them. Slices that speak of events are indexed like the items.
type archiveRequest struct {
	items   []pipeline.Item
	partial bool // batches may lack events
	batches []requestBatch
	size    int // of the events' encodings, bytes

	encoded []byte   // the lines of all events
	ends    []int    // of each event's line; a malformed event has an empty one
	reasons []string // why an event is malformed; nil if none is

	// The plan: what of it the lane does not hold.
	take       []bool
	apart      []bool // events that the lane cannot take: it holds their batches without them; nil unless partial
	entries    []archiveEntry
	duplicates int // batches that the lane holds already
}

// requestBatch is one batch of a request: the items from first on, up to end.
type requestBatch struct {
	*pipeline.Batch
	first, end int
	accepted   int64
}

// newArchiveRequest encodes the events. It fails unless items are whole batches, or, where they may
// be partial, unless their indexes rise.
func newArchiveRequest(items []pipeline.Item, partial bool) (*archiveRequest, error) {
	r := &archiveRequest{items: items, partial: partial, ends: make([]int, len(items)), take: make([]bool, len(items))}
	if partial {
		r.apart = make([]bool, len(items))
	}
	for i, item := range items {
		if i == 0 || item.Batch != items[i-1].Batch {
			if err := r.complete(i); err != nil {
				return nil, err
			}
			r.batches = append(r.batches, requestBatch{item.Batch, i, i, archiveTime(item.Batch.AcceptedAt)})
		}
		b := &r.batches[len(r.batches)-1]
		least := 0
		if i > b.first {
			least = items[i-1].Index + 1
		}
		if item.Index < least || item.Index > least && !partial || item.Index >= len(item.Batch.Events) {
			return nil, fmt.Errorf("the request has event %d of batch %v in the wrong place: it must hold whole batches",
				item.Index, b.ID)
		}
		b.end = i + 1
		r.size += len(item.Encoded())
	}
	if err := r.complete(len(items)); err != nil {
		return nil, err
	}
	r.encode()
	return r, nil
}

// complete checks that the last batch has all its events before item end.
func (r *archiveRequest) complete(end int) error {
	if len(r.batches) == 0 || r.partial {
		return nil
	}
	b := r.batches[len(r.batches)-1]
	if got := end - b.first; got != len(b.Events) {
		return fmt.Errorf("the request has %d of the %d events of batch %v: it must hold whole batches",
			got, len(b.Events), b.ID)
	}
	return nil
}

func (r *archiveRequest) encode() {
	// Base64 makes 4 bytes of 3, and the names of attributes are added.
	r.encoded = make([]byte, 0, r.size+r.size/2+len(r.items)*128)
	var encoder lineEncoder
	for i, item := range r.items {
		var err error
		r.encoded, err = encoder.appendLine(r.encoded, item.Encoded(), item.Batch.Position(item.Index))
		if err != nil {
			r.malformed(i, err)
		}
		r.ends[i] = len(r.encoded)
	}
}

func (r *archiveRequest) malformed(item int, err error) {
	if r.reasons == nil {
		r.reasons = make([]string, len(r.items))
	}
	r.reasons[item] = err.Error()
}

// plan decides, from what the lane holds up to its end, what is to be appended.
func (r *archiveRequest) plan(ctx context.Context, l *archiveLog) error {
	older, err := r.older(ctx, l)
	if err != nil {
		return err
	}
	planned := newArchiveSet() // a batch may be queued twice, and come in one request
	elsewhere, err := r.elsewhere(ctx, l)
	if err != nil {
		return err
	}
	sets := []*archiveSet{l.set, older, planned, elsewhere}
	r.entries, r.duplicates = r.entries[:0], 0
	for _, b := range r.batches {
		entry := r.planBatch(b, sets)
		r.markApart(b, sets)
		if entry.Events > 0 {
			planned.add(&entry)
			r.entries = append(r.entries, entry)
		}
	}
	return nil
}

// markApart marks the events of a batch that one of the sets holds without them.
func (r *archiveRequest) markApart(b requestBatch, sets []*archiveSet) {
	if !r.partial {
		return
	}
	listed := slices.ContainsFunc(sets, func(s *archiveSet) bool { return s.has(b.ID) })
	for i := b.first; i < b.end; i++ {
		r.apart[i] = listed && !slices.ContainsFunc(sets, func(s *archiveSet) bool {
			return s.holds(pipeline.Origin{Batch: b.ID, Index: r.items[i].Index})
		})
	}
}

// planBatch marks the events of a batch that none of the sets holds.
func (r *archiveRequest) planBatch(b requestBatch, sets []*archiveSet) archiveEntry {
	entry := archiveEntry{ID: b.ID, Accepted: b.accepted, Origin: b.Origin}
	duplicate := slices.ContainsFunc(sets, func(s *archiveSet) bool {
		return s.has(b.ID) || b.Origin != nil && s.holds(*b.Origin)
	})
	if duplicate {
		r.duplicates++
	}
	next := b.first
	for index := range b.Events {
		if next == b.end || r.items[next].Index != index {
			entry.Dropped = append(entry.Dropped, index)
			continue
		}
		i := next
		next++
		requeued := slices.ContainsFunc(sets, func(s *archiveSet) bool {
			return slices.Contains(s.origins[b.ID], index)
		})
		r.take[i] = !duplicate && !requeued && !r.isMalformed(i)
		if r.take[i] {
			entry.Events++
		} else {
			entry.Dropped = append(entry.Dropped, index)
		}
	}
	return entry
}

// older returns those batches of interest that stand in objects which memory does not
// cover; an empty set if all that matter are covered.
func (r *archiveRequest) older(ctx context.Context, l *archiveLog) (*archiveSet, error) {
	wanted, accepted := r.uncovered(l)
	if len(wanted) == 0 {
		return newArchiveSet(), nil
	}
	covered, err := l.cover(ctx, accepted)
	if err != nil || covered {
		return newArchiveSet(), err
	}
	wanted, accepted = r.uncovered(l)
	return l.scan(ctx, accepted, wanted)
}

// elsewhere returns which of the requeued events stand in the lane that they were in first, where
// that is another one: the pipeline has it no more, so nobody appends to it meanwhile.
func (r *archiveRequest) elsewhere(ctx context.Context, l *archiveLog) (*archiveSet, error) {
	found := newArchiveSet()
	byLane := map[int][]requestBatch{}
	for _, b := range r.batches {
		if b.Origin != nil && b.OriginLane != l.lane {
			byLane[b.OriginLane] = append(byLane[b.OriginLane], b)
		}
	}
	for lane, batches := range byLane {
		wanted, accepted := make(map[pipeline.BatchID]struct{}), batches[0].accepted
		for _, b := range batches {
			wanted[b.Origin.Batch] = struct{}{}
			accepted = min(accepted, b.accepted)
		}
		old := newArchiveLog(l.objects, lane, l.bound)
		if err := old.load(ctx, 0); err != nil {
			return nil, err
		}
		older, err := old.scan(ctx, accepted, wanted)
		if err != nil {
			return nil, err
		}
		for _, b := range batches {
			if old.set.holds(*b.Origin) || older.holds(*b.Origin) {
				found.origins[b.Origin.Batch] = append(found.origins[b.Origin.Batch], b.Origin.Index)
			}
		}
	}
	return found, nil
}

// uncovered returns the batches, and the origins of requeued ones, that may stand in
// objects that are not covered, and the earliest time at which one was accepted.
func (r *archiveRequest) uncovered(l *archiveLog) (map[pipeline.BatchID]struct{}, int64) {
	var wanted map[pipeline.BatchID]struct{}
	var earliest int64
	for _, b := range r.batches {
		if b.accepted > l.floor {
			continue
		}
		if wanted == nil {
			wanted, earliest = make(map[pipeline.BatchID]struct{}), b.accepted
		}
		earliest = min(earliest, b.accepted)
		wanted[b.ID] = struct{}{}
		if b.Origin != nil {
			wanted[b.Origin.Batch] = struct{}{}
		}
	}
	return wanted, earliest
}

// frame lists the planned batches for an object at the end of the lane.
func (r *archiveRequest) frame(l *archiveLog) *archiveFrame {
	f := &archiveFrame{Offset: l.end, Previous: l.watermark, Watermark: l.watermark, Entries: slices.Clone(r.entries)}
	for i := range f.Entries {
		f.Events += int64(f.Entries[i].Events)
		f.Watermark = max(f.Watermark, f.Entries[i].Accepted)
	}
	return f
}

// lines returns the lines of the planned events.
func (r *archiveRequest) lines() []byte {
	if !slices.Contains(r.take, false) {
		return r.encoded
	}
	var lines []byte
	start := 0
	for i, end := range r.ends {
		if r.take[i] {
			lines = append(lines, r.encoded[start:end]...)
		}
		start = end
	}
	return lines
}

func (r *archiveRequest) isMalformed(item int) bool { return r.reasons != nil && r.reasons[item] != "" }

// results are those of a request all of whose events the lane holds now, as far as it can.
func (r *archiveRequest) results() []pipeline.Result {
	results := make([]pipeline.Result, len(r.items))
	for i := range results {
		switch {
		case r.isMalformed(i):
			results[i] = pipeline.Result{Verdict: pipeline.Refused, Code: codeMalformedEvent, Reason: r.reasons[i]}
		case r.partial && r.apart[i]:
			results[i] = pipeline.Result{Verdict: pipeline.Refused, Code: codeHeldInPart, Reason: fmt.Sprintf(
				"the archive holds batch %v without this event, as another filter picked it: name another prefix", r.items[i].Batch.ID)}
		default:
			results[i].Verdict = pipeline.Delivered
		}
	}
	return results
}
