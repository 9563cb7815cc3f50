package journey

import (
	"cmp"
	"slices"
	"strings"

	"github.com/waybillhq/waybill/internal/collector"
)

// Attributes of Waybill's spans (docs/tracing.md).
const (
	attrID          = "cloudevents.event_id"
	attrSource      = "cloudevents.event_source"
	attrType        = "cloudevents.event_type"
	attrCorrelation = "messaging.message.conversation_id"
	attrOperation   = "messaging.operation.name"
	attrSink        = "waybill.sink"
	attrOutcome     = "waybill.outcome"
	attrCode        = "waybill.refusal.code"
	attrAttempt     = "waybill.attempt"
)

// Operations, as attrOperation names them.
const (
	opAccept  = "accept"
	opCommit  = "commit"
	opPublish = "publish"
	opProcess = "process"
	opSend    = "send"
	opSettle  = "settle"
)

// Name is how an event is named: no two have the same.
type Name struct {
	Source string `json:"source"`
	ID     string `json:"id"`
}

// Event is what a trace says of one event.
type Event struct {
	Name
	Type, Correlation string
	TraceID           string
	// Spans are the event's own, by their beginning. Above are those of other programs that they
	// hang under, the outermost first.
	Spans, Above []collector.Span
	// Foreign is the number of spans that are no event's and not in Above.
	Foreign int

	all []Name // the events that have spans in the trace, this one too, in the order of their names
}

// Others are the further events that have spans in the trace, in the order of their names.
func (e *Event) Others() []Name {
	others := make([]Name, 0, len(e.all))
	for _, name := range e.all {
		if name != e.Name {
			others = append(others, name)
		}
	}
	return others
}

// Events returns the events that have spans in a trace, in the order of their first ones. spans
// are all of one trace, in any order.
func Events(spans []collector.Span) []*Event {
	spans = slices.SortedStableFunc(slices.Values(spans), byBeginning)
	t := &members{events: map[Name]*Event{}, owners: map[string]*Event{}, byID: map[string]*collector.Span{}}
	for i := range spans {
		t.own(&spans[i])
	}
	foreign := make([]*collector.Span, 0, len(spans))
	for i := range spans {
		s := &spans[i]
		owner := t.ownerOf(s)
		if owner == nil {
			foreign = append(foreign, s)
			continue
		}
		owner.Spans = append(owner.Spans, *s)
	}
	// Of two spans with one id, which no program makes, one is nobody's.
	t.order = slices.DeleteFunc(t.order, func(e *Event) bool { return len(e.Spans) == 0 })
	// One slice for all: a trace of thousands of events has as many others for each.
	names := make([]Name, 0, len(t.order))
	for _, e := range t.order {
		names = append(names, e.Name)
	}
	slices.SortFunc(names, func(a, b Name) int { return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.ID, b.ID)) })
	for _, e := range t.order {
		e.all = names
		t.look(e, foreign)
	}
	slices.SortStableFunc(t.order, func(a, b *Event) int { return byBeginning(a.Spans[0], b.Spans[0]) })
	return t.order
}

// byBeginning puts a span before those that it encloses.
func byBeginning(a, b collector.Span) int {
	return cmp.Or(a.Start.Compare(b.Start), b.End.Compare(a.End))
}

// members tells whose the spans of a trace are.
type members struct {
	events map[Name]*Event
	order  []*Event
	owners map[string]*Event // by the id of a span, and of one that has not come but is a send's parent
	byID   map[string]*collector.Span
}

// isWaybills reports whether Waybill made a span. Producers may name events in theirs, too.
func isWaybills(s *collector.Span) bool {
	if s.Attributes[attrOperation] == "" {
		return false
	}
	for key := range s.Attributes {
		if strings.HasPrefix(key, "waybill.") {
			return true
		}
	}
	return false
}

// own notes a span that names its event.
func (m *members) own(s *collector.Span) {
	m.byID[s.ID] = s
	name := Name{s.Attributes[attrSource], s.Attributes[attrID]}
	if name.ID == "" || !isWaybills(s) {
		return
	}
	e := m.events[name]
	if e == nil {
		e = &Event{Name: name, Type: s.Attributes[attrType], Correlation: s.Attributes[attrCorrelation], TraceID: s.TraceID}
		m.events[name], m.order = e, append(m.order, e)
	}
	m.owners[s.ID] = e
	if s.Attributes[attrOperation] == opSend {
		m.owners[s.Parent] = e // its processing ends last, and its span comes last
	}
}

// ownerOf is the event that a span is of; nil: it is no event's. Settling knows nothing of the
// event but the span of its processing, which may not have come.
func (m *members) ownerOf(s *collector.Span) *Event {
	switch {
	case !isWaybills(s):
		return nil
	case s.Attributes[attrOperation] != opSettle:
		return m.owners[s.ID]
	case m.owners[s.Parent] == nil && len(m.order) == 1:
		return m.order[0]
	}
	return m.owners[s.Parent]
}

// look completes an event with what else the trace has.
func (m *members) look(e *Event, foreign []*collector.Span) {
	seen := map[string]bool{}
	for i := range e.Spans {
		for id := e.Spans[i].Parent; !seen[id]; {
			seen[id] = true
			s := m.byID[id]
			if s == nil {
				break
			}
			if m.ownerOf(s) == nil {
				e.Above = append(e.Above, *s)
			}
			id = s.Parent
		}
	}
	slices.SortStableFunc(e.Above, byBeginning)
	e.Foreign = len(foreign) - len(e.Above)
}

// of returns the spans of an operation, to a sink if one is named.
func (e *Event) of(operation, sink string) (spans []*collector.Span) {
	for i := range e.Spans {
		s := &e.Spans[i]
		if s.Attributes[attrOperation] == operation && (sink == "" || s.Attributes[attrSink] == sink) {
			spans = append(spans, s)
		}
	}
	return spans
}

// first is the first span of an operation, or nil.
func (e *Event) first(operation string) *collector.Span {
	if spans := e.of(operation, ""); len(spans) > 0 {
		return spans[0]
	}
	return nil
}
