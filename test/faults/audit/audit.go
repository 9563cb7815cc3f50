// Package audit compares what producers were told with what the sinks have: for each event
// whether it arrived, how often, in which order, and under which number.
package audit

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/waybillhq/waybill/internal/roundtrip"
	"github.com/waybillhq/waybill/pipeline"
)

// Evidence is everything that a run left behind, read once it was settled.
type Evidence struct {
	// Sent are the events that were offered, and what their producers were told.
	Sent []roundtrip.Entry
	// Sinks is what each sink has, in the order in which it got it; the archive's lane
	// after lane.
	Sinks map[string][]roundtrip.Delivery
	// Archive names the sink that must have nothing twice, and dense offsets.
	Archive string
	Letters []Letter
	// Heads are the highest seqnums given out, as Postgres knows them.
	Heads []Head
	// Retransmitted are the numbers of the batches that were published again.
	Retransmitted map[int64]bool
	// Doubling are the times at which something may lead to doubles in other sinks than the
	// archive.
	Doubling []Window
	// Codes are those that dead letters may have.
	Codes []string
	// Overtaken, which may be nil, tells the sources whose events may come out of order where no batch was retransmitted.
	Overtaken func(source string) bool
	// Forgets: an event whose producer was not told the outcome may be stored again for each
	// such try. Else it is stored once, whatever its producer was told.
	Forgets bool
}

// Of is the part of the evidence that is about certain keys. The offsets of the archive are of all keys together: holes
// in those of a part mean nothing.
func (e Evidence) Of(has func(source, typ string) bool) Evidence {
	part := e
	part.Sent = slices.DeleteFunc(slices.Clone(e.Sent), func(s roundtrip.Entry) bool { return !has(s.Source, s.Type) })
	part.Letters = slices.DeleteFunc(slices.Clone(e.Letters), func(l Letter) bool { return !has(l.Source, l.Type) })
	part.Heads = slices.DeleteFunc(slices.Clone(e.Heads), func(h Head) bool { return !has(h.Source, h.Type) })
	part.Sinks = map[string][]roundtrip.Delivery{}
	for sink, all := range e.Sinks {
		part.Sinks[sink] = slices.DeleteFunc(slices.Clone(all), func(d roundtrip.Delivery) bool { return !has(d.Source, d.Type) })
	}
	return part
}

// Window is a time.
type Window struct{ From, To time.Time }

// Letter is a dead letter.
type Letter struct {
	Sink, Code       string
	Source, Type, ID string
	Seqnum, Position int64
}

// Head is the last seqnum of a key.
type Head struct {
	Source, Type string
	Seqnum       int64
}

// Report is what became of the events.
type Report struct {
	Offered      int `json:"offered"`
	Acknowledged int `json:"acknowledged"`
	// Refused events were offered and never accepted.
	Refused int `json:"refused"`
	// Unknown counts tries whose producer was not told what became of them.
	Unknown int `json:"unknown_outcomes"`
	// Stored counts the seqnums given out.
	Stored int64 `json:"stored"`
	// StoredAgain counts copies of an event beyond its unknown outcomes.
	StoredAgain int `json:"stored_again"`
	// Forks counts seqnums that two events have.
	Forks int `json:"forks"`
	// Wrong counts deliveries of what was never sent, or with other content.
	Wrong int             `json:"wrong"`
	Sinks map[string]Sink `json:"sinks"`

	Examples []string `json:"examples,omitempty"`
}

// Sink is what became of the events in one sink.
type Sink struct {
	// Delivered counts events, Doubled deliveries beyond the first of each.
	Delivered int `json:"delivered"`
	Doubled   int `json:"doubled"`
	// DoubledOutside counts the doubles that came while nothing could lead to any.
	DoubledOutside int `json:"doubled_unexplained"`
	// Lost counts acknowledged events that are neither in the sink nor dead letters, Gaps
	// seqnums of any event.
	Lost int `json:"lost"`
	Gaps int `json:"gaps"`
	// OutOfOrder counts events that came after one of their key with a higher seqnum,
	// Unexplained those of them that were never retransmitted.
	OutOfOrder  int            `json:"out_of_order"`
	Unexplained int            `json:"out_of_order_unexplained"`
	DeadLetters map[string]int `json:"dead_letters"` // by code
	// Holes counts places where the archive's offsets are not dense.
	Holes int `json:"holes,omitempty"`
}

// maxDoubleShare is how many events of a sink other than the archive may be doubles that
// nothing explains.
const maxDoubleShare = 0.001

// maxExamples bounds the examples of a report.
const maxExamples = 20

// key is the unit of order.
type key struct{ source, typ string }

// slot is one seqnum of a key.
type slot struct {
	key    key
	seqnum int64
}

// auditor holds the state of one Compare.
type auditor struct {
	evidence Evidence
	report   Report
	sent     map[string]*roundtrip.Entry // by id
	owners   map[slot]string             // the id of the event that has a seqnum
	copies   map[string][]slot           // by id
	batches  map[slot]int64              // where the batch is known
	letters  map[string]map[slot]bool    // by sink
}

// Compare finds out what became of the events.
func Compare(evidence Evidence) Report {
	a := &auditor{
		evidence: evidence, report: Report{Sinks: map[string]Sink{}},
		sent: map[string]*roundtrip.Entry{}, owners: map[slot]string{}, copies: map[string][]slot{},
		batches: map[slot]int64{}, letters: map[string]map[slot]bool{},
	}
	a.takeSent()
	for i := range evidence.Letters {
		a.takeLetter(&evidence.Letters[i])
	}
	names := slices.Sorted(maps.Keys(evidence.Sinks))
	for _, name := range names { // the batches of all must be known before order is judged
		for i := range evidence.Sinks[name] {
			a.takeDelivery(name, &evidence.Sinks[name][i])
		}
	}
	for _, name := range names {
		a.judgeSink(name)
	}
	a.judgeCopies()
	return a.report
}

func (a *auditor) example(format string, args ...any) {
	if len(a.report.Examples) < maxExamples {
		a.report.Examples = append(a.report.Examples, fmt.Sprintf(format, args...))
	}
}

func (a *auditor) takeSent() {
	r := &a.report
	for i := range a.evidence.Sent {
		e := &a.evidence.Sent[i]
		a.sent[e.ID] = e
		r.Offered++
		r.Unknown += e.Unknown
		if e.Accepted {
			r.Acknowledged++
			continue
		}
		r.Refused++
		a.example("event %s was not accepted: %v", e.ID, e.Err)
	}
	for _, h := range a.evidence.Heads {
		r.Stored += h.Seqnum
	}
}

// own notes which event has a seqnum. It reports false for a fork.
func (a *auditor) own(where string, s slot, id string) bool {
	switch owner, taken := a.owners[s]; {
	case !taken:
		a.owners[s] = id
		a.copies[id] = append(a.copies[id], s)
	case owner != id:
		a.report.Forks++
		a.example("%s: events %s and %s of %s %s both have the seqnum %d", where, owner, id, s.key.source, s.key.typ, s.seqnum)
		return false
	}
	return true
}

func (a *auditor) takeLetter(l *Letter) {
	s := slot{key{l.Source, l.Type}, l.Seqnum}
	if !a.own("dead letters", s, l.ID) {
		return
	}
	if a.letters[l.Sink] == nil {
		a.letters[l.Sink] = map[slot]bool{}
	}
	a.letters[l.Sink][s] = true
	a.batches[s], _ = pipeline.SplitPosition(l.Position)
}

func (a *auditor) takeDelivery(sink string, d *roundtrip.Delivery) {
	if !a.asSent(sink, d) {
		return
	}
	s := slotOf(d)
	if a.own(sink, s, d.ID) && d.Position > 0 {
		a.batches[s], _ = pipeline.SplitPosition(d.Position)
	}
}

func slotOf(d *roundtrip.Delivery) slot { return slot{key{d.Source, d.Type}, d.Seqnum} }

// asSent compares a delivery with what was offered.
func (a *auditor) asSent(sink string, d *roundtrip.Delivery) bool {
	e := a.sent[d.ID]
	switch {
	case e == nil:
		a.example("%s: event %s was never offered", sink, d.ID)
	case e.Source != d.Source || e.Type != d.Type || e.DataCRC32C != d.DataCRC32C:
		a.example("%s: event %s is not as it was offered", sink, d.ID)
	case d.Seqnum < 1:
		a.example("%s: event %s has the seqnum %d", sink, d.ID, d.Seqnum)
	default:
		return true
	}
	a.report.Wrong++
	return false
}

func (a *auditor) judgeSink(name string) {
	out := Sink{DeadLetters: map[string]int{}}
	for _, l := range a.evidence.Letters {
		if l.Sink == name {
			out.DeadLetters[l.Code]++
		}
	}
	has := a.judgeDeliveries(name, &out)
	for s := range a.letters[name] {
		has[s] = true
	}
	a.judgeLost(name, has, &out)
	a.judgeGaps(name, has, &out)
	if name == a.evidence.Archive {
		a.judgeOffsets(name, &out)
	}
	a.report.Sinks[name] = out
}

// judgeDeliveries counts doubles and inversions, and returns what the sink has.
func (a *auditor) judgeDeliveries(name string, out *Sink) map[slot]bool {
	has := map[slot]bool{}
	highest := map[key]int64{}
	for i := range a.evidence.Sinks[name] {
		d := &a.evidence.Sinks[name][i]
		s := slotOf(d)
		if has[s] {
			out.Doubled++
			out.DoubledOutside += a.outside(name, d)
			if name == a.evidence.Archive {
				a.example("%s: event %s (seqnum %d) is there twice, the second time in lane %d at %d", name, d.ID, d.Seqnum, d.Lane, d.Offset)
			}
			continue
		}
		has[s] = true
		out.Delivered++
		if d.Seqnum < highest[s.key] {
			out.OutOfOrder++
			if !a.evidence.Retransmitted[a.batches[s]] && (a.evidence.Overtaken == nil || !a.evidence.Overtaken(d.Source)) {
				out.Unexplained++
				a.example("%s: event %s (seqnum %d, batch %d) of %s %s came after seqnum %d and was never retransmitted",
					name, d.ID, d.Seqnum, a.batches[s], d.Source, d.Type, highest[s.key])
			}
		}
		highest[s.key] = max(highest[s.key], d.Seqnum)
	}
	return has
}

// outside is 1 for a double that nothing led to.
func (a *auditor) outside(name string, d *roundtrip.Delivery) int {
	for _, w := range a.evidence.Doubling {
		if !d.At.Before(w.From) && !d.At.After(w.To) {
			return 0
		}
	}
	if name != a.evidence.Archive {
		a.example("%s: event %s (seqnum %d) came again at %s", name, d.ID, d.Seqnum, d.At.Format("15:04:05.000"))
	}
	return 1
}

// judgeLost looks for each acknowledged event.
func (a *auditor) judgeLost(name string, has map[slot]bool, out *Sink) {
	for i := range a.evidence.Sent {
		e := &a.evidence.Sent[i]
		if !e.Accepted {
			continue
		}
		if !slices.ContainsFunc(a.copies[e.ID], func(s slot) bool { return has[s] }) {
			out.Lost++
			a.example("%s: event %s of %s %s was acknowledged and is lost (%s)", name, e.ID, e.Source, e.Type, a.elsewhere(e.ID))
		}
	}
}

// elsewhere says where an event is known from.
func (a *auditor) elsewhere(id string) string {
	if len(a.copies[id]) == 0 {
		return "no sink has it"
	}
	s := a.copies[id][0]
	return fmt.Sprintf("it has seqnum %d, batch %d", s.seqnum, a.batches[s])
}

// judgeGaps wants every seqnum that Postgres gave out, acknowledged or not.
func (a *auditor) judgeGaps(name string, has map[slot]bool, out *Sink) {
	heads := map[key]int64{}
	for _, h := range a.evidence.Heads {
		heads[key{h.Source, h.Type}] = h.Seqnum
		for n := int64(1); n <= h.Seqnum; n++ {
			s := slot{key{h.Source, h.Type}, n}
			if !has[s] {
				out.Gaps++
				a.example("%s: seqnum %d of %s %s is missing (event %q, batch %d)", name, n, h.Source, h.Type, a.owners[s], a.batches[s])
			}
		}
	}
	for s := range has {
		if s.seqnum > heads[s.key] {
			a.report.Wrong++
			a.example("%s: seqnum %d of %s %s was never given out", name, s.seqnum, s.key.source, s.key.typ)
		}
	}
}

// judgeOffsets wants the offsets of each lane to begin at 0 and to be dense.
func (a *auditor) judgeOffsets(name string, out *Sink) {
	next := map[int]int64{}
	for i := range a.evidence.Sinks[name] {
		d := &a.evidence.Sinks[name][i]
		if d.Offset != next[d.Lane] {
			out.Holes++
			a.example("%s: lane %d has offset %d where %d should be", name, d.Lane, d.Offset, next[d.Lane])
		}
		next[d.Lane] = d.Offset + 1
	}
}

// judgeCopies looks for events that were stored more often than their producers may have
// caused.
func (a *auditor) judgeCopies() {
	for id, copies := range a.copies {
		e := a.sent[id]
		if e == nil {
			continue // counted as wrong
		}
		allowed := e.Unknown
		if e.Accepted {
			allowed++
		}
		if !a.evidence.Forgets {
			allowed = min(allowed, 1)
		}
		if len(copies) > allowed {
			a.report.StoredAgain += len(copies) - allowed
			a.example("event %s was stored %d times, with %d tries of unknown outcome", id, len(copies), e.Unknown)
		}
	}
}

// Violations lists what must never be, whatever was broken.
func (r Report) Violations(evidence Evidence) []string {
	var out []string
	bad := func(n int, format string, args ...any) {
		if n != 0 {
			out = append(out, fmt.Sprintf("%d ", n)+fmt.Sprintf(format, args...))
		}
	}
	bad(r.Refused, "events were offered and never accepted")
	bad(r.StoredAgain, "copies of events were stored although nothing explains them")
	bad(r.Forks, "seqnums belong to two events")
	bad(r.Wrong, "deliveries are of events that were not sent so")
	for _, name := range slices.Sorted(maps.Keys(r.Sinks)) {
		s := r.Sinks[name]
		bad(s.Lost, "acknowledged events are lost to %s", name)
		bad(s.Gaps, "seqnums are missing in %s", name)
		bad(s.Unexplained, "events came to %s out of order without having been retransmitted", name)
		if share := float64(s.DoubledOutside) / float64(max(s.Delivered, 1)); name != evidence.Archive && share > maxDoubleShare {
			bad(s.DoubledOutside, "events came to %s again, of %d, and nothing explains that", name, s.Delivered)
		}
		bad(s.Holes, "offsets of %s are not dense", name)
		if name == evidence.Archive {
			bad(s.Doubled, "events are in %s twice", name)
		}
		for code, n := range s.DeadLetters {
			if !slices.Contains(evidence.Codes, code) {
				bad(n, "dead letters of %s have the code %s, which nothing explains", name, code)
			}
		}
	}
	return out
}
