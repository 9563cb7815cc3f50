package journey

import (
	"slices"
	"strconv"
	"time"

	"github.com/waybillhq/waybill/internal/collector"
)

// Outcomes, as attrOutcome has them.
const (
	delivered  = "delivered"
	before     = "accepted before"
	deadLetter = "dead letter"
)

// Delivery is an event's way to one sink.
type Delivery struct {
	Sink string
	// Outcome is that of the newest span that knows it: delivered, refused, not taken, dead letter;
	// empty: none does. Code is that of a refusal.
	Outcome, Code string
	// Tries is how often it was sent, and Processed how often a forwarder had it, as far as spans
	// have come. Settled reports whether that of the settling has.
	Tries, Processed int
	Settled          bool
	Stages           []Stage
}

// Took is from the beginning to the end of a stage; it reports false if that is not known.
func (d *Delivery) Took(stage string) (time.Duration, bool) {
	s := d.stage(stage)
	if s == nil {
		return 0, false
	}
	return s.End().Sub(d.Stages[0].Start), true
}

func (d *Delivery) stage(name string) *Stage {
	for i := range d.Stages {
		if d.Stages[i].Name == name {
			return &d.Stages[i]
		}
	}
	return nil
}

// Sinks are those that the event has spans of, sorted.
func (e *Event) Sinks() (sinks []string) {
	for i := range e.Spans {
		if sink := e.Spans[i].Attributes[attrSink]; sink != "" && !slices.Contains(sinks, sink) {
			sinks = append(sinks, sink)
		}
	}
	slices.Sort(sinks)
	return sinks
}

// Deliveries are the ways to the sinks that the event has spans of.
func (e *Event) Deliveries() (out []Delivery) {
	for _, sink := range e.Sinks() {
		out = append(out, e.delivery(sink))
	}
	return out
}

func (e *Event) delivery(sink string) Delivery {
	processed, sends, settles := e.of(opProcess, sink), e.of(opSend, sink), e.of(opSettle, sink)
	d := Delivery{Sink: sink, Tries: len(sends), Processed: len(processed)}
	w := Way{Accept: e.first(opAccept), Commit: e.first(opCommit), Publish: e.first(opPublish)}
	w.Settle = decisive(settles)
	w.Process = processing(processed, w.Settle)
	for _, s := range sends { // of several tries the last one counts; the earlier ones are of the time before it
		if w.Process == nil || s.Parent == w.Process.ID {
			w.Send = s
		}
	}
	w.Again = e.again(&w)
	d.Settled, d.Stages = w.Settle != nil, w.Stages()
	for _, s := range []*collector.Span{w.Send, w.Process, w.Settle} {
		if s != nil && s.Attributes[attrOutcome] != "" {
			d.Outcome, d.Code = s.Attributes[attrOutcome], s.Attributes[attrCode]
		}
	}
	return d
}

// decisive is the settling that counts: the first one of a delivery, or, if there is none, the
// last one, after which the event may have been queued again.
func decisive(settles []*collector.Span) *collector.Span {
	for _, s := range settles {
		if s.Attributes[attrOutcome] == delivered {
			return s
		}
	}
	if len(settles) == 0 {
		return nil
	}
	return settles[len(settles)-1]
}

// processing is the one that was settled, or else the last one. A forwarder that dies leaves none.
func processing(processed []*collector.Span, settle *collector.Span) *collector.Span {
	if settle != nil {
		for _, s := range processed {
			if s.ID == settle.Parent {
				return s
			}
		}
		return nil // its span has not come
	}
	if len(processed) == 0 {
		return nil
	}
	return processed[len(processed)-1]
}

// again is the publishing that a delivery comes from, if it is not the first.
func (e *Event) again(w *Way) *collector.Span {
	if w.Process == nil {
		return nil
	}
	for _, s := range e.of(opPublish, "") {
		if s.ID == w.Process.Parent {
			if s == w.Publish {
				return nil
			}
			return s
		}
	}
	if attempt, err := strconv.Atoi(w.Process.Attributes[attrAttempt]); err == nil && attempt > 0 {
		// Its span has not come: it ended when a forwarder had the message, at the latest.
		return &collector.Span{Start: w.Process.Start, End: w.Process.Start}
	}
	return nil
}

// Missing says what is not known of the event's way, a few words each: it is not done yet, or the
// spans have not come. Empty: everything is there.
func (e *Event) Missing() (out []string) {
	if e.NotStored() != "" {
		return nil
	}
	for _, part := range []struct{ operation, name string }{{opAccept, "the acceptance"}, {opCommit, "the transaction"}, {opPublish, "the publishing"}} {
		if e.first(part.operation) == nil {
			out = append(out, part.name)
		}
	}
	deliveries := e.Deliveries()
	if len(deliveries) == 0 {
		out = append(out, "any delivery")
	}
	for _, d := range deliveries {
		switch _, whole := d.Took(Settle); {
		case d.Settled && whole:
		case d.Settled:
			out = append(out, "a part of the way to "+d.Sink)
		case d.Processed > 0:
			out = append(out, "the settling of "+d.Sink)
		default:
			out = append(out, "the processing for "+d.Sink+" (which comes when it ends)")
		}
	}
	return out
}

// NotStored says why no request of the trace stored the event; empty: one did, or it is not known.
func (e *Event) NotStored() string {
	accepted, commits := e.of(opAccept, ""), e.of(opCommit, "")
	if e.first(opPublish) != nil || len(accepted) == 0 {
		return ""
	}
	known := len(commits) > 0
	for _, s := range commits {
		known = known && s.Attributes[attrOutcome] == before
	}
	if known {
		return "an earlier request had stored it, which has its own trace unless it sent the same traceparent"
	}
	for _, s := range accepted {
		if s.Failure == "" {
			return ""
		}
	}
	return "no request was answered OK: " + accepted[len(accepted)-1].Failure
}
