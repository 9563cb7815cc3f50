package roundtrip

import (
	"fmt"
	"iter"
	"strings"
	"time"
)

// Delivery is one event as a sink has it.
type Delivery struct {
	Source, Type, ID string
	Seqnum           int64
	DataCRC32C       uint32
	// At is when an endpoint took it; zero where that is not known.
	At time.Time
	// Where the archive has it: a lane, the offset in it, and the event's position. Zero
	// of other sinks.
	Lane             int
	Offset, Position int64
}

// Ledger is what was sent and what became of it. It belongs to one goroutine once Send has
// returned.
type Ledger struct {
	plan Plan
	sent []entry // by index of the event
	// seqnums of the events, as the first sink that was verified has them.
	seqnums map[string][]int64
}

// entry is one event of the plan.
type entry struct {
	checksum uint32
	offered  bool // it was part of a call
	accepted bool
	// unknown counts the tries after which it may have been stored although that was not
	// said: as many times may it be there more than once.
	unknown int
	err     error // of one that was not accepted
}

func newLedger(plan Plan) *Ledger {
	return &Ledger{plan: plan, sent: make([]entry, plan.Events)}
}

// Entry is one event that was offered to an ingest.
type Entry struct {
	Source, Type, ID string
	DataCRC32C       uint32
	Accepted         bool
	// Unknown counts the tries after which it may have been stored although that was not
	// said.
	Unknown int
	Err     error // of one that was not accepted
}

// Entries yields the events that were offered, in the order of the plan.
func (l *Ledger) Entries() iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for i := range l.sent {
			e := &l.sent[i]
			if !e.offered {
				continue
			}
			source, typ := l.plan.keyOf(i)
			entry := Entry{
				Source: source, Type: typ, ID: l.plan.id(i), DataCRC32C: e.checksum,
				Accepted: e.accepted, Unknown: e.unknown, Err: e.err,
			}
			if !yield(entry) {
				return
			}
		}
	}
}

// Accepted is how many events were accepted.
func (l *Ledger) Accepted() int {
	n := 0
	for i := range l.sent {
		if l.sent[i].accepted {
			n++
		}
	}
	return n
}

// Unknown is how many tries ended without a word on whether the event was stored.
func (l *Ledger) Unknown() int {
	n := 0
	for i := range l.sent {
		n += l.sent[i].unknown
	}
	return n
}

// NotAccepted returns the first event that was not accepted and why; nil when all were.
func (l *Ledger) NotAccepted() error {
	for i := range l.sent {
		if !l.sent[i].accepted {
			return fmt.Errorf("event %s was not accepted: %w", l.plan.id(i), l.sent[i].err)
		}
	}
	return nil
}

// maxExamples bounds the examples of a report.
const maxExamples = 5

// Report is what a sink has of what was sent.
type Report struct {
	Sink     string
	Accepted int
	// Delivered counts the accepted events that the sink has, Missing those it has not.
	Delivered, Missing int
	// Double counts deliveries beyond the first of each event that was stored. What was
	// stored twice, because a producer did not know and sent it again, is no double.
	Double int
	// OutOfOrder counts events that came after one of their key with a higher seqnum.
	OutOfOrder int
	// Wrong counts events with other content than was sent, with a seqnum that another
	// event has, or that were never sent.
	Wrong int
	// Gaps counts the seqnums of a key, from 1 to its highest, that no event has.
	Gaps int
	// Examples are the first few faults, for people.
	Examples []string
}

// OK reports whether nothing is missing or wrong, and nothing double or out of order.
func (r Report) OK() bool { return r.Complete() && r.Double == 0 && r.OutOfOrder == 0 }

// Complete reports whether nothing is missing or wrong. A sink that gets events at least
// once may have some twice, or late, after a failure.
func (r Report) Complete() bool { return r.Missing == 0 && r.Wrong == 0 && r.Gaps == 0 }

func (r *Report) example(format string, args ...any) {
	if len(r.Examples) < maxExamples {
		r.Examples = append(r.Examples, r.Sink+": "+fmt.Sprintf(format, args...))
	}
}

// keyName identifies a key.
type keyName struct{ source, typ string }

// keyState is what was seen of a key.
type keyState struct {
	highest int64
	ids     map[int64]string // by seqnum
}

// Verify compares what a sink has, in the order in which it got it, with what was sent.
// Deliveries of other runs are passed over. The error is one of reading.
func (l *Ledger) Verify(sink string, deliveries iter.Seq2[Delivery, error]) (Report, error) {
	v := &verifier{
		ledger: l, report: Report{Sink: sink, Accepted: l.Accepted()},
		keys: map[keyName]*keyState{}, seqnums: map[string][]int64{}, copies: make([]int, len(l.sent)),
	}
	for d, err := range deliveries {
		if err != nil {
			return v.report, fmt.Errorf("read back from %s: %w", sink, err)
		}
		if strings.HasPrefix(d.Source, l.plan.sourcePrefix()) {
			v.take(d)
		}
	}
	v.finish()
	return v.report, nil
}

type verifier struct {
	ledger  *Ledger
	report  Report
	keys    map[keyName]*keyState
	seqnums map[string][]int64 // by event id, in the order of arrival
	copies  []int              // by index of the event: times it was stored, as far as the sink shows
}

// take looks at one delivery.
func (v *verifier) take(d Delivery) {
	index, ok := v.ledger.plan.indexOf(d.ID)
	if !ok {
		v.wrong("event %q was never sent", d.ID)
		return
	}
	if !v.sameContent(index, d) || !v.ownSeqnum(d) {
		return
	}
	key := v.key(d)
	if key.ids[d.Seqnum] == d.ID {
		v.report.Double++
		v.report.example("event %s (seqnum %d) came again", d.ID, d.Seqnum)
		return
	}
	key.ids[d.Seqnum] = d.ID
	v.copies[index]++
	v.seqnums[d.ID] = append(v.seqnums[d.ID], d.Seqnum)
	if d.Seqnum < key.highest {
		v.report.OutOfOrder++
		v.report.example("event %s (seqnum %d) of %s %s came after seqnum %d", d.ID, d.Seqnum, d.Source, d.Type, key.highest)
	}
	key.highest = max(key.highest, d.Seqnum)
}

func (v *verifier) wrong(format string, args ...any) {
	v.report.Wrong++
	v.report.example(format, args...)
}

func (v *verifier) sameContent(index int, d Delivery) bool {
	source, typ := v.ledger.plan.keyOf(index)
	sent := v.ledger.sent[index].checksum
	switch {
	case d.Source != source || d.Type != typ:
		v.wrong("event %s is of %s %s and was sent as %s %s", d.ID, d.Source, d.Type, source, typ)
	case d.DataCRC32C != sent:
		v.wrong("event %s has data with checksum %08x and was sent with %08x", d.ID, d.DataCRC32C, sent)
	default:
		return true
	}
	return false
}

// ownSeqnum checks that no other event has the seqnum.
func (v *verifier) ownSeqnum(d Delivery) bool {
	other := v.key(d).ids[d.Seqnum]
	switch {
	case d.Seqnum < 1:
		v.wrong("event %s has the seqnum %d; they begin at 1", d.ID, d.Seqnum)
	case other != "" && other != d.ID:
		v.wrong("events %s and %s of %s %s both have the seqnum %d", other, d.ID, d.Source, d.Type, d.Seqnum)
	default:
		return true
	}
	return false
}

func (v *verifier) key(d Delivery) *keyState {
	name := keyName{d.Source, d.Type}
	key := v.keys[name]
	if key == nil {
		key = &keyState{ids: map[int64]string{}}
		v.keys[name] = key
	}
	return key
}

// finish counts what only the whole shows.
func (v *verifier) finish() {
	for i := range v.ledger.sent {
		v.finishEvent(i, &v.ledger.sent[i])
	}
	for name, key := range v.keys {
		if gaps := int(key.highest) - len(key.ids); gaps > 0 {
			v.report.Gaps += gaps
			v.report.example("%d seqnums of %s %s up to %d are missing", gaps, name.source, name.typ, key.highest)
		}
	}
	v.compareSeqnums()
}

func (v *verifier) finishEvent(index int, e *entry) {
	copies, id := v.copies[index], v.ledger.plan.id(index)
	allowed := e.unknown
	if e.accepted {
		allowed++
	}
	switch {
	case copies == 0 && e.accepted:
		v.report.Missing++
		v.report.example("event %s is missing", id)
	case copies > allowed && allowed == 0:
		v.wrong("event %s was refused and is there", id)
	case copies > allowed:
		v.report.Double += copies - allowed
		v.report.example("event %s was stored %d times", id, copies)
	}
	if copies > 0 && e.accepted {
		v.report.Delivered++
	}
}

// compareSeqnums holds the sinks against each other: an event has the same seqnums in all.
func (v *verifier) compareSeqnums() {
	if v.ledger.seqnums == nil {
		v.ledger.seqnums = v.seqnums
		return
	}
	for id, mine := range v.seqnums {
		theirs := v.ledger.seqnums[id]
		if len(theirs) > 0 && len(mine) > 0 && !sameNumbers(mine, theirs) {
			v.wrong("event %s has the seqnums %v here and %v in another sink", id, mine, theirs)
		}
	}
}

// sameNumbers reports whether one list, in any order, holds the other: a copy that one
// sink lacks is counted as a gap.
func sameNumbers(a, b []int64) bool {
	if len(a) > len(b) {
		a, b = b, a
	}
	has := make(map[int64]bool, len(b))
	for _, n := range b {
		has[n] = true
	}
	for _, n := range a {
		if !has[n] {
			return false
		}
	}
	return true
}
