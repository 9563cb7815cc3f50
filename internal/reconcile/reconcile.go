// Package reconcile accounts for every seqnum that Postgres gave out: each must be waiting, a dead
// letter, or where its sink has it. Of the archive that is looked up, of other sinks it is Postgres's word.
package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/waybillhq/waybill/internal/seqset"
	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/sinks"
)

// MaxExamples bounds the spans of seqnums that a report names; all are counted.
const MaxExamples = 100

// Config says what is reconciled.
type Config struct {
	Store *pipeline.Store
	// Archive reads the archive; nil: it is not asked.
	Archive *sinks.ArchiveReader
	// ArchiveSink is the name of the sink that writes it.
	ArchiveSink string
	// Since bounds what is looked at to what was accepted at or after a time by Postgres's clock. Zero:
	// everything.
	Since time.Time
	// Tell, which may be nil, is told what is read.
	Tell func(what string, events int64)
}

// Report says what became of the events.
type Report struct {
	At    time.Time `json:"at"` // of the snapshot, by Postgres's clock
	Since time.Time `json:"since,omitzero"`
	// Keys were looked at. Unseen are those of which nothing was found in the time asked for.
	Keys   int `json:"keys"`
	Unseen int `json:"keys_unseen"`
	// Accepted counts the seqnums that were given out, of the keys and the time looked at.
	Accepted int64  `json:"accepted"`
	Sinks    []Sink `json:"sinks"`
	// Unidentified dead letters stand for events of which nothing is left, in Postgres, to tell their key by.
	Unidentified int64 `json:"unidentified_dead_letters,omitempty"`
	// NeverGivenOut counts seqnums beyond the last one that Postgres gave out: it was set back.
	NeverGivenOut int64 `json:"never_given_out"`
	// Missing are the first spans of seqnums that are nowhere.
	Missing []Missing `json:"missing,omitempty"`
	// Notes say what the report does not cover.
	Notes []string `json:"notes,omitempty"`
}

// Sink is what became of the events in one sink. Accepted = Settled + Waiting + Dead, and of the
// archive Settled = Archived, if nothing is missing.
type Sink struct {
	Sink     string `json:"sink"`
	Accepted int64  `json:"accepted"`
	// Waiting are in Postgres, Dead dead letters; one that is requeued is both and counts as waiting.
	Waiting int64 `json:"waiting"`
	Dead    int64 `json:"dead_letters"`
	// Settled are those that Postgres has no more, or that the sink took late: the sink has them.
	Settled int64 `json:"settled"`
	// Archived are found in the archive; absent for other sinks.
	Archived *int64 `json:"archived,omitempty"`
	Missing  int64  `json:"missing"` // are nowhere
	Doubled  int64  `json:"doubled"` // are in the archive again
	// Gone wait, but their rows are gone: they become dead letters with the code DAMAGED.
	Gone int64 `json:"rows_gone"`
}

// Missing is a span of seqnums of a key that are nowhere.
type Missing struct {
	Sink   string `json:"sink"`
	Source string `json:"source"`
	Type   string `json:"type"`
	From   int64  `json:"from"`
	To     int64  `json:"to"`
}

// Bad says that something is missing, or there that must not be.
func (r Report) Bad() bool {
	for _, s := range r.Sinks {
		if s.Missing+s.Doubled+s.Gone > 0 {
			return true
		}
	}
	return r.NeverGivenOut > 0
}

// account is what is known of one key.
type account struct {
	last int64 // as of the snapshot
	// lowest seqnum of what was found, for each sink and, behind these, for the report as a whole, of
	// what was accepted within the auditor's bounds; 0: nothing.
	lowest   []int64
	waiting  map[string]*seqset.Set
	dead     map[string]*seqset.Set
	archived seqset.Set
	beyond   seqset.Set // archived, and above last
	doubled  int64
}

// auditor holds the state of one Run.
type auditor struct {
	cfg    Config
	report Report
	keys   map[pipeline.Key]*account
	gone   map[string]int64
	sinks  []pipeline.SinkSince
	// bounds are the times from which on all that was accepted is looked at, for each sink and, behind
	// these, for the report as a whole. What was accepted earlier is not what an account begins with: it
	// may be here late, and the events after it are not.
	bounds []time.Time
	// begins are the first offsets of the lanes of the archive from whose beginning something was
	// deleted; deleted is when the newest of that was accepted, zero where there is none.
	begins  map[int]int64
	deleted time.Time
	events  int64 // looked at, for Tell
}

const (
	// orderMargin is more than the time by which seqnums of a key may be out of the order in which they
	// were accepted: by the time of a flush, which is that of its beginning.
	orderMargin = time.Minute
	// sinkMargin is more than the time that adding a sink takes. What is accepted meanwhile need not
	// reach it.
	sinkMargin = time.Minute
)

// Run reads Postgres in one snapshot, and then the archive. In that order nothing can seem to be missing
// that was on its way meanwhile: what the snapshot does not know of any more was archived before it.
// Memory is some hundred bytes for each key.
func Run(ctx context.Context, cfg Config) (Report, error) {
	a := &auditor{cfg: cfg, keys: map[pipeline.Key]*account{}, gone: map[string]int64{}, begins: map[int]int64{}}
	if cfg.Archive != nil {
		if err := a.findBeginnings(ctx); err != nil {
			return Report{}, err
		}
	}
	if err := a.readPostgres(ctx); err != nil {
		return Report{}, err
	}
	if cfg.Archive != nil {
		if err := a.readArchive(ctx); err != nil {
			return Report{}, err
		}
		if err := a.checkBeyond(ctx); err != nil {
			return Report{}, err
		}
	}
	a.judge()
	return a.report, nil
}

func (a *auditor) tell(what string) {
	a.events++
	if a.cfg.Tell != nil {
		a.cfg.Tell(what, a.events)
	}
}

func (a *auditor) key(k pipeline.Key) *account {
	if a.keys[k] == nil {
		a.keys[k] = &account{lowest: make([]int64, len(a.bounds)), waiting: map[string]*seqset.Set{}, dead: map[string]*seqset.Set{}}
	}
	return a.keys[k]
}

// found notes the lowest seqnums that are of the times looked at.
func (a *auditor) found(c *account, seqnum int64, accepted time.Time) {
	for i, bound := range a.bounds {
		if !accepted.Before(bound) && (c.lowest[i] == 0 || seqnum < c.lowest[i]) {
			c.lowest[i] = seqnum
		}
	}
}

// findBeginnings looks for what was deleted of the archive. It does so first: what is deleted later is
// noticed.
func (a *auditor) findBeginnings(ctx context.Context) error {
	lanes, err := a.cfg.Archive.Lanes(ctx)
	if err != nil {
		return err
	}
	for _, lane := range lanes {
		begin, deleted, err := a.cfg.Archive.Begin(ctx, lane)
		if err != nil {
			return err
		}
		if begin == 0 {
			continue
		}
		a.begins[lane] = begin
		if deleted.After(a.deleted) {
			a.deleted = deleted
		}
	}
	return nil
}

// bound sets the bounds for the sinks.
func (a *auditor) bound(sinks []pipeline.SinkSince) error {
	a.sinks = sinks
	for _, sink := range sinks {
		bound := a.cfg.Since
		if !sink.FromTheStart {
			bound = later(bound, sink.Since.Add(sinkMargin))
		}
		if sink.Name == a.cfg.ArchiveSink && !a.deleted.IsZero() {
			bound = later(bound, a.deleted.Add(time.Microsecond)) // Postgres's precision
		}
		a.bounds = append(a.bounds, bound)
	}
	a.bounds = append(a.bounds, a.cfg.Since)
	return nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func add(sets map[string]*seqset.Set, sink string, seqnum int64) {
	if sets[sink] == nil {
		sets[sink] = &seqset.Set{}
	}
	sets[sink].Add(seqnum)
}

func (a *auditor) readPostgres(ctx context.Context) (err error) {
	a.report.Since = a.cfg.Since
	a.report.At, err = a.cfg.Store.ReadAccount(ctx, pipeline.Account{
		Sinks: a.bound,
		Head: func(k pipeline.Key, last int64) error {
			a.key(k).last = last
			a.tell("keys")
			return nil
		},
		Waiting: func(e pipeline.WaitingEvent) error {
			c := a.key(e.Key)
			for _, sink := range e.Sinks {
				add(c.waiting, sink, e.Seqnum)
			}
			a.found(c, e.Seqnum, e.AcceptedAt)
			a.tell("waiting events")
			return nil
		},
		Gone: func(_ int64, events int, sinks []string) error {
			for _, sink := range sinks {
				a.gone[sink] += int64(events)
			}
			return nil
		},
		Letter: func(m pipeline.LetterMark) error {
			a.tell("dead letters")
			if m.Source == "" && m.Type == "" {
				a.report.Unidentified++
				return nil
			}
			c := a.key(m.Key)
			if m.State == pipeline.LetterDead {
				add(c.dead, m.Sink, m.Seqnum)
			}
			a.found(c, m.Seqnum, m.AcceptedAt)
			return nil
		},
	})
	return err
}

func (a *auditor) readArchive(ctx context.Context) error {
	lanes, err := a.cfg.Archive.Lanes(ctx)
	if err != nil {
		return err
	}
	for _, lane := range lanes {
		if err := a.readLane(ctx, lane); err != nil {
			return err
		}
	}
	return nil
}

// readLane reads a lane, or the part of it that may hold what was accepted since. Of what lies in
// between older events count too: that they are there makes nothing missing.
func (a *auditor) readLane(ctx context.Context, lane int) error {
	from := int64(0)
	if !a.cfg.Since.IsZero() {
		var err error
		if from, err = a.cfg.Archive.OffsetSince(ctx, lane, a.cfg.Since.Add(-orderMargin)); err != nil {
			return err
		}
	}
	first := from == 0
	for object, err := range a.cfg.Archive.Objects(ctx, lane, from) {
		if err != nil {
			return fmt.Errorf("%w (`waybill archive verify` looks for all that is wrong)", err)
		}
		if first && object.Offset > a.begins[lane] {
			return fmt.Errorf("objects of lane %d of the archive were deleted while it was read: look whether a lifecycle rule did it, and run it again", lane)
		}
		first = false
		contents, err := a.cfg.Archive.Read(ctx, object)
		if err != nil {
			return fmt.Errorf("%w (`waybill archive verify` looks for all that is wrong)", err)
		}
		records := contents.Records
		for _, b := range contents.Batches {
			for i := range records[:b.Events] {
				a.archived(&records[i], b.Accepted)
			}
			records = records[b.Events:]
		}
	}
	return nil
}

// archived notes an event that the archive holds.
func (a *auditor) archived(r *sinks.Record, accepted time.Time) {
	c := a.key(pipeline.Key{Source: r.Source, Type: r.Type})
	a.found(c, r.Seqnum, accepted)
	switch {
	case r.Seqnum > c.last: // accepted since the snapshot, or never
		c.beyond.Add(r.Seqnum)
	case !c.archived.Add(r.Seqnum):
		c.doubled++
	}
	a.tell("archived events")
}

// checkBeyond compares what was archived beyond the snapshot's heads with the present ones.
func (a *auditor) checkBeyond(ctx context.Context) error {
	last := map[pipeline.Key]int64{}
	err := a.cfg.Store.ReadHeads(ctx, func(k pipeline.Key, n int64) error {
		if c := a.keys[k]; c != nil {
			if _, any := c.beyond.Min(); any {
				last[k] = n
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for k, c := range a.keys {
		a.report.NeverGivenOut += c.beyond.Count(max(c.last, last[k])+1, math.MaxInt64)
	}
	return nil
}

// whole says that the seqnums of a key are looked at from 1 on. Else the lowest one that was found is
// the first.
func (a *auditor) whole(sink pipeline.SinkSince) bool {
	return a.cfg.Since.IsZero() && sink.FromTheStart && (sink.Name != a.cfg.ArchiveSink || a.deleted.IsZero())
}

func (a *auditor) judge() {
	a.report.Keys = len(a.keys)
	for _, c := range a.keys {
		first := int64(1)
		if !a.cfg.Since.IsZero() {
			first = c.lowest[len(a.sinks)]
		}
		if first == 0 {
			a.report.Unseen++
			continue
		}
		a.report.Accepted += max(0, c.last-first+1)
	}
	keys := slices.SortedFunc(maps.Keys(a.keys), func(x, y pipeline.Key) int {
		return cmp.Or(cmp.Compare(x.Source, y.Source), cmp.Compare(x.Type, y.Type))
	})
	for i, sink := range a.sinks {
		a.report.Sinks = append(a.report.Sinks, a.judgeSink(i, sink, keys))
	}
	a.note()
}

func (a *auditor) judgeSink(index int, sink pipeline.SinkSince, keys []pipeline.Key) Sink {
	out := Sink{Sink: sink.Name, Gone: a.gone[sink.Name]}
	looked := sink.Name == a.cfg.ArchiveSink && a.cfg.Archive != nil
	var archived int64
	for _, k := range keys {
		c := a.keys[k]
		first := c.lowest[index]
		if a.whole(sink) {
			first = 1
		}
		if first == 0 || first > c.last {
			continue
		}
		waiting, dead := setOf(c.waiting, sink.Name), setOf(c.dead, sink.Name)
		out.Accepted += c.last - first + 1
		out.Waiting += waiting.Count(first, c.last)
		for span := range seqset.Missing(first, c.last, waiting) {
			out.Dead += dead.Count(span.From, span.To)
			out.Settled += span.Len() - dead.Count(span.From, span.To)
		}
		if !looked {
			continue
		}
		out.Doubled += c.doubled
		archived += c.archived.Count(first, c.last)
		for span := range seqset.Missing(first, c.last, &c.archived, waiting, dead) {
			out.Missing += span.Len()
			if len(a.report.Missing) < MaxExamples {
				a.report.Missing = append(a.report.Missing, Missing{sink.Name, k.Source, k.Type, span.From, span.To})
			}
		}
	}
	if looked {
		out.Archived = &archived
	} else {
		out.Settled = max(0, out.Settled-out.Gone) // whose seqnums nobody knows
	}
	return out
}

func setOf(sets map[string]*seqset.Set, sink string) *seqset.Set {
	if sets[sink] == nil {
		return &seqset.Set{}
	}
	return sets[sink]
}

// note says what the report cannot say.
func (a *auditor) note() {
	note := func(format string, args ...any) {
		a.report.Notes = append(a.report.Notes, fmt.Sprintf(format, args...))
	}
	hasArchive := slices.ContainsFunc(a.sinks, func(s pipeline.SinkSince) bool { return s.Name == a.cfg.ArchiveSink })
	switch {
	case a.cfg.Archive == nil:
		note("the archive was not read: what is settled is Postgres's word alone")
	case !hasArchive:
		note("the pipeline has no sink %s: the archive was read for nothing", a.cfg.ArchiveSink)
	case !a.deleted.IsZero() && !a.deleted.Before(a.cfg.Since):
		note("the archive's oldest objects were deleted: of each key only what comes after the first event that was accepted later than what they held, at %s, was looked at", a.deleted.Format(time.RFC3339))
	}
	for _, s := range a.sinks {
		if !s.FromTheStart {
			note("%s was added at %s: of each key only what comes after the first event that was accepted a minute later, or after that, and is still known was looked at", s.Name, s.Since.UTC().Format(time.RFC3339))
		}
	}
	if a.report.Unseen > 0 {
		note("of %d keys nothing was found that was accepted since then: they had no event, or lost all; without --since these are looked at too", a.report.Unseen)
	}
	if a.report.Unidentified > 0 {
		note("%d dead letters say no more whose they are: their seqnums are among the missing", a.report.Unidentified)
	}
}
