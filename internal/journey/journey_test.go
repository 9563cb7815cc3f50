package journey

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/waybillhq/waybill/internal/collector"
)

var began = time.Unix(1_800_000_000, 0)

// span is one of a trace; from and to are milliseconds, and attributes name and value.
func span(id, parent, operation, event string, from, to int, attributes ...string) collector.Span {
	s := collector.Span{
		TraceID: "t", ID: id, Parent: parent, Name: operation, Service: "waybill",
		Start: began.Add(time.Duration(from) * time.Millisecond), End: began.Add(time.Duration(to) * time.Millisecond),
		Attributes: map[string]string{attrOperation: operation, attrID: event, attrSource: "/s", attrType: "t", attrCorrelation: "c", "waybill.front": "http"},
	}
	if event == "" {
		for _, key := range []string{attrID, attrSource, attrType, attrCorrelation} {
			delete(s.Attributes, key)
		}
	}
	for i := 0; i < len(attributes); i += 2 {
		s.Attributes[attributes[i]] = attributes[i+1]
	}
	return s
}

// accepted are the spans of an event until it is published.
func accepted(event string) []collector.Span {
	return []collector.Span{
		span(event+"-accept", "root", opAccept, event, 0, 9), span(event+"-commit", event+"-accept", opCommit, event, 3, 8, attrOutcome, "stored"),
		span(event+"-publish", event+"-accept", opPublish, event, 8, 13, attrAttempt, "0"),
	}
}

// taken are those of a delivery that begins when a forwarder has the message.
func taken(event, sink, parent string, from int, outcome string) []collector.Span {
	id, code := parent+"-"+sink, ""
	if outcome == "refused" {
		code = "BAD"
	}
	settled := map[string]string{delivered: delivered, "refused": deadLetter}[outcome]
	return []collector.Span{
		span(id, parent, opProcess, event, from, from+10, attrSink, sink, attrOutcome, outcome, attrCode, code),
		span(id+"-send", id, opSend, event, from+2, from+8, attrSink, sink, attrOutcome, outcome, attrCode, code),
		span(id+"-settle", id, opSettle, "", from+11, from+20, attrSink, sink, attrOutcome, settled, attrCode, code),
	}
}

// only is the one event of a trace.
func only(t *testing.T, spans []collector.Span) *Event {
	t.Helper()
	events := Events(spans)
	if len(events) != 1 {
		t.Fatalf("%d events, want 1", len(events))
	}
	return events[0]
}

// mustTake compares the stages, in milliseconds.
func mustTake(t *testing.T, d Delivery, want ...any) {
	t.Helper()
	var got []any
	for _, s := range d.Stages {
		got = append(got, s.Name, int(s.Took.Milliseconds()))
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s: %v, want %v", d.Sink, got, want)
	}
	for i := 1; i < len(d.Stages); i++ {
		if !d.Stages[i].Start.Equal(d.Stages[i-1].End()) {
			t.Errorf("%s: %s does not begin where %s ends", d.Sink, d.Stages[i].Name, d.Stages[i-1].Name)
		}
	}
}

func TestOneEvent(t *testing.T) {
	root := collector.Span{TraceID: "t", ID: "root", Parent: "above", Name: "checkout", Start: began.Add(-time.Second), End: began.Add(time.Hour)}
	above := collector.Span{TraceID: "t", ID: "above", Name: "request", Start: began.Add(-2 * time.Second), End: began.Add(time.Hour)}
	beside := collector.Span{TraceID: "t", ID: "beside", Parent: "above", Name: "SELECT", Start: began, End: began}
	// What producers say of the event in their own spans makes these none of Waybill's.
	producers := span("own", "root", "send", "e", 0, 1)
	delete(producers.Attributes, "waybill.front")
	spans := slices.Concat([]collector.Span{root, above, beside, producers}, accepted("e"), taken("e", "ingress", "e-publish", 12, delivered), taken("e", "archive", "e-publish", 15, delivered))
	slices.Reverse(spans)
	e := only(t, spans)
	if e.ID != "e" || e.Source != "/s" || e.Correlation != "c" || e.TraceID != "t" || len(e.Spans) != 9 || len(e.Others()) != 0 {
		t.Errorf("%+v", e)
	}
	if len(e.Above) != 2 || e.Above[0].Name != "request" || e.Above[1].Name != "checkout" || e.Foreign != 2 {
		t.Errorf("above are %v, and %d are foreign; want request and checkout, and 2", e.Above, e.Foreign)
	}
	if missing := e.Missing(); len(missing) > 0 {
		t.Errorf("missing: %q", missing)
	}
	d := e.Deliveries()
	if len(d) != 2 || d[0].Sink != "archive" || d[1].Outcome != delivered || !d[1].Settled || d[1].Tries != 1 || d[1].Processed != 1 {
		t.Fatalf("%+v", d)
	}
	// A forwarder had it before ingest heard that it was stored.
	mustTake(t, d[1], Wait, 3, Commit, 5, Publish, 4, Queue, 0, Gather, 2, Send, 6, Receipt, 2, Settle, 10)
	mustTake(t, d[0], Wait, 3, Commit, 5, Publish, 5, Queue, 2, Gather, 2, Send, 6, Receipt, 2, Settle, 10)
}

func TestEventsOfOneTraceAreToldApart(t *testing.T) {
	spans := slices.Concat(accepted("a"), accepted("b"), taken("a", "ingress", "a-publish", 12, delivered), taken("b", "ingress", "b-publish", 22, "refused"))
	events := Events(spans)
	if len(events) != 2 {
		t.Fatalf("%d events, want 2", len(events))
	}
	for _, e := range events {
		for _, s := range e.Spans {
			if !strings.HasPrefix(s.ID, e.ID+"-") {
				t.Errorf("%s has the span %s", e.ID, s.ID)
			}
		}
		if len(e.Spans) != 6 || len(e.Others()) != 1 || e.Others()[0].ID == e.ID {
			t.Errorf("%s has %d spans and the others %v", e.ID, len(e.Spans), e.Others())
		}
	}
	// A send names its processing, whose span comes last, and so settling is known to be the event's.
	early := Events(slices.DeleteFunc(slices.Clone(spans), func(s collector.Span) bool { return s.ID == "a-publish-ingress" }))
	if a := early[0]; len(a.Spans) != 5 || !a.Deliveries()[0].Settled || len(early[1].Spans) != 6 {
		t.Errorf("without the processing %s has %d spans, and %s %d", a.ID, len(a.Spans), early[1].ID, len(early[1].Spans))
	}
	if b := events[1].Deliveries()[0]; b.Outcome != deadLetter || b.Code != "BAD" || !b.Settled {
		t.Errorf("%+v", b)
	}
}

func TestRetransmit(t *testing.T) {
	again := span("again", "root", opPublish, "e", 500, 510, attrAttempt, "1")
	first := span("first", "e-publish", opProcess, "e", 20, 400, attrSink, "ingress", attrOutcome, "not taken")
	try := span("try", "first", opSend, "e", 21, 30, attrSink, "ingress", attrOutcome, "not taken")
	spans := slices.Concat(accepted("e"), []collector.Span{first, try, again}, taken("e", "ingress", "again", 512, delivered), taken("e", "archive", "e-publish", 15, delivered))
	e := only(t, spans)
	d := e.Deliveries()
	mustTake(t, d[0], Wait, 3, Commit, 5, Publish, 5, Queue, 2, Gather, 2, Send, 6, Receipt, 2, Settle, 10)
	mustTake(t, d[1], Wait, 3, Commit, 5, Publish, 5, Retransmit, 497, Queue, 2, Gather, 2, Send, 6, Receipt, 2, Settle, 10)
	if d[1].Tries != 2 || d[1].Processed != 2 || d[1].Outcome != delivered {
		t.Errorf("%+v", d[1])
	}
	// Without the span of the publishing its end is not known, but that there was one is.
	process := slices.IndexFunc(spans, func(s collector.Span) bool { return s.ID == "again-ingress" })
	spans[process].Attributes[attrAttempt] = "1"
	spans = slices.DeleteFunc(spans, func(s collector.Span) bool { return s.ID == "again" })
	mustTake(t, only(t, spans).Deliveries()[1], Wait, 3, Commit, 5, Publish, 5, Retransmit, 499, Queue, 0, Gather, 2, Send, 6, Receipt, 2, Settle, 10)
}

// A dead letter that was queued again counts by how that ended.
func TestRequeued(t *testing.T) {
	again := span("again", "root", opPublish, "e", 500, 510)
	dead := slices.Concat(accepted("e"), taken("e", "ingress", "e-publish", 12, "refused"))
	if d := only(t, dead).Deliveries()[0]; d.Outcome != deadLetter || d.Code != "BAD" {
		t.Errorf("%+v", d)
	}
	twice := taken("e", "ingress", "again", 512, "refused")
	for i := range twice {
		twice[i].Attributes[attrCode] = "WORSE"
	}
	if d := only(t, slices.Concat(dead, []collector.Span{again}, twice)).Deliveries()[0]; d.Outcome != deadLetter || d.Code != "WORSE" {
		t.Errorf("dead twice: %+v", d)
	}
	spans := slices.Concat(dead, []collector.Span{again}, taken("e", "ingress", "again", 512, delivered))
	d := only(t, spans).Deliveries()[0]
	if d.Outcome != delivered || d.Code != "" || d.Processed != 2 {
		t.Errorf("%+v", d)
	}
	mustTake(t, d, Wait, 3, Commit, 5, Publish, 5, Retransmit, 497, Queue, 2, Gather, 2, Send, 6, Receipt, 2, Settle, 10)
}

func TestWhatHasNotCome(t *testing.T) {
	all := slices.Concat(accepted("e"), taken("e", "ingress", "e-publish", 12, delivered))
	for _, c := range []struct {
		without string // ids, separated by spaces
		missing string // separated by |
		stages  string // of ingress
	}{
		{"", "", "wait commit publish queue gather send receipt settle"},
		{"e-publish-ingress-settle", "the settling of ingress", "wait commit publish queue gather send receipt"},
		{"e-publish-ingress e-publish-ingress-settle", "the processing for ingress (which comes when it ends)", "wait commit publish"},
		{"e-publish-ingress", "a part of the way to ingress", "wait commit publish"},
		{"e-publish-ingress-send", "a part of the way to ingress", "wait commit publish queue"},
		{"e-publish-ingress e-publish-ingress-send e-publish-ingress-settle", "any delivery", ""},
		{"e-accept", "the acceptance", "publish queue gather send receipt settle"},
		{"e-accept e-commit", "the acceptance|the transaction", "publish queue gather send receipt settle"},
		{"e-publish", "the publishing", "wait commit publish queue gather send receipt settle"},
		{"e-accept e-commit e-publish", "the acceptance|the transaction|the publishing|a part of the way to ingress", ""},
	} {
		gone := strings.Fields(c.without)
		e := only(t, slices.DeleteFunc(slices.Clone(all), func(s collector.Span) bool { return slices.Contains(gone, s.ID) }))
		if got := strings.Join(e.Missing(), "|"); got != c.missing {
			t.Errorf("without %s: missing is %q, want %q", c.without, got, c.missing)
		}
		var stages []string
		for _, d := range e.Deliveries() {
			for _, s := range d.Stages {
				stages = append(stages, s.Name)
			}
		}
		if got := strings.Join(stages, " "); got != c.stages {
			t.Errorf("without %s: the stages are %q, want %q", c.without, got, c.stages)
		}
	}
}

func TestNotStored(t *testing.T) {
	refused := span("a", "", opAccept, "e", 0, 1)
	refused.Failure = "overloaded"
	for _, c := range []struct {
		spans []collector.Span
		why   string
	}{
		{accepted("e"), ""},
		{accepted("e")[:2], ""}, // the publishing has not come
		{[]collector.Span{refused}, "overloaded"},
		{[]collector.Span{refused, span("b", "", opAccept, "e", 5, 6)}, ""}, // a retry
		{[]collector.Span{span("a", "", opAccept, "e", 0, 9), span("b", "a", opCommit, "e", 1, 8, attrOutcome, before)}, "an earlier request"},
	} {
		e := only(t, c.spans)
		if why := e.NotStored(); (why == "") != (c.why == "") || !strings.Contains(why, c.why) {
			t.Errorf("%d spans: %q, want %q", len(c.spans), why, c.why)
		} else if why != "" && len(e.Missing()) > 0 {
			t.Errorf("%q, and missing is %q", why, e.Missing())
		}
	}
}

// What is no tree is looked at all the same.
func TestSpansThatHangUnderThemselves(t *testing.T) {
	a := collector.Span{TraceID: "t", ID: "a", Parent: "b", Start: began, End: began}
	b := collector.Span{TraceID: "t", ID: "b", Parent: "a", Start: began, End: began}
	accept := span("e", "a", opAccept, "e", 0, 1)
	if e := only(t, []collector.Span{a, b, accept}); len(e.Above) != 2 {
		t.Errorf("above are %v", e.Above)
	}
	twice := []collector.Span{span("e", "", opAccept, "one", 0, 1), span("e", "", opAccept, "two", 0, 1), span("s", "e", opSettle, "three", 0, 1, attrSink, "x")}
	if events := Events(twice); len(events) != 1 || events[0].ID != "two" {
		t.Errorf("%d events", len(events))
	}
}

// A trace may be one of thousands of events, as of a job that emits them all: what is kept of each must
// not grow with their number.
func TestATraceOfThousandsOfEvents(t *testing.T) {
	const events = 4000
	var spans []collector.Span
	for i := range events {
		spans = append(spans, span(fmt.Sprintf("%d-accept", i), "root", opAccept, fmt.Sprintf("e%04d", i), i, i+1))
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	all := Events(spans)
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / events; each > 8<<10 {
		t.Errorf("%d bytes an event", each)
	}
	if others := all[7].Others(); len(all) != events || len(others) != events-1 || others[7].ID != "e0008" {
		t.Errorf("%d events, and the others of one are %d", len(all), len(others))
	}
}
