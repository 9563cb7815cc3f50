package sinks

import (
	"slices"

	"github.com/waybillhq/waybill/pipeline"
)

// archiveSet knows batches that the archive holds, by number and token.
type archiveSet struct {
	ids     map[pipeline.BatchID]struct{}
	dropped map[pipeline.BatchID][]int // of batches whose object holds only some events
	origins map[pipeline.BatchID][]int // indexes that came in again as requeued events
}

func newArchiveSet() *archiveSet {
	return &archiveSet{
		ids:     make(map[pipeline.BatchID]struct{}),
		dropped: make(map[pipeline.BatchID][]int),
		origins: make(map[pipeline.BatchID][]int),
	}
}

func (s *archiveSet) add(e *archiveEntry) {
	s.ids[e.ID] = struct{}{}
	if len(e.Dropped) > 0 {
		s.dropped[e.ID] = e.Dropped
	}
	if e.Origin != nil {
		s.origins[e.Origin.Batch] = append(s.origins[e.Origin.Batch], e.Origin.Index)
	}
}

// has reports whether the batch is listed.
func (s *archiveSet) has(id pipeline.BatchID) bool {
	_, ok := s.ids[id]
	return ok
}

// holds reports whether the event is in the archive: with its batch, or requeued.
func (s *archiveSet) holds(o pipeline.Origin) bool {
	return s.has(o.Batch) && !slices.Contains(s.dropped[o.Batch], o.Index) ||
		slices.Contains(s.origins[o.Batch], o.Index)
}

// forget takes out what add put in for a batch without origin and left-out events.
func (s *archiveSet) forget(id pipeline.BatchID) { delete(s.ids, id) }

// forgetSpecial takes out what add put in for any other batch.
func (s *archiveSet) forgetSpecial(e *archiveEntry) {
	delete(s.ids, e.ID)
	delete(s.dropped, e.ID)
	if e.Origin == nil {
		return
	}
	rest := slices.DeleteFunc(s.origins[e.Origin.Batch], func(index int) bool { return index == e.Origin.Index })
	if len(rest) == 0 {
		delete(s.origins, e.Origin.Batch)
	} else {
		s.origins[e.Origin.Batch] = rest
	}
}

func (e *archiveEntry) special() bool { return e.Origin != nil || len(e.Dropped) > 0 }
