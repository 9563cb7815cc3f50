package main

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/waybillhq/waybill/internal/collector"
	"github.com/waybillhq/waybill/internal/jaeger"
)

// tracedWay makes the spans of an event, as the three processes do. Times are milliseconds from
// began on.
type tracedWay struct {
	trace, id, correlation string
	began                  time.Time
	batch                  int // events of its request, its transaction and its batch
	parent                 string
}

func (w *tracedWay) span(name, id, parent, process string, from, to float64, attributes ...string) collector.Span {
	at := func(ms float64) time.Time { return w.began.Add(time.Duration(ms * float64(time.Millisecond))) }
	kind, _, _ := strings.Cut(process, "-")
	op, sink, _ := strings.Cut(name, " ")
	s := collector.Span{
		TraceID: w.trace, ID: spanID(w.id, id), Name: name, Service: "waybill-" + kind, Instance: process, Start: at(from), End: at(to),
		Attributes: map[string]string{
			"messaging.operation.name": op, "cloudevents.event_id": w.id, "cloudevents.event_source": "/orders", "cloudevents.event_type": "order.paid",
			"messaging.message.conversation_id": w.correlation, "messaging.batch.message_count": fmt.Sprint(w.batch),
		},
	}
	if s.Parent = w.parent; parent != "" {
		s.Parent = spanID(w.id, parent)
	}
	switch op {
	case "process", "send":
		s.Attributes["waybill.sink"] = sink
	case "settle":
		s.Attributes = map[string]string{"messaging.operation.name": op, "waybill.sink": sink}
	case "publish":
		s.Attributes["messaging.destination.partition.id"] = "3"
	}
	for i := 0; i < len(attributes); i += 2 {
		if attributes[i] == "failure" {
			s.Failure = attributes[i+1]
			continue
		}
		s.Attributes[attributes[i]] = attributes[i+1]
	}
	return s
}

// spanID is the id of a span of an event.
func spanID(event, span string) string {
	h := fnv.New64a()
	_, _ = h.Write([]byte(event + "/" + span))
	return fmt.Sprintf("%016x", h.Sum64())
}

func (w *tracedWay) accepted() []collector.Span {
	return []collector.Span{
		w.span("accept events", "a", "", "ingest-1", 0, 3.2, "waybill.front", "grpc"),
		w.span("commit events", "c", "a", "ingest-1", 0.3, 3, "waybill.outcome", "stored"),
		w.span("publish EVENTS", "p", "a", "ingest-1", 3.05, 4.5, "waybill.attempt", "0", "waybill.batch", "7.00000000000000ff"),
	}
}

// delivered is a delivery that a forwarder began with at some time. publish is the id of the span
// that published it.
func (w *tracedWay) delivered(sink, publish string, from float64) []collector.Span {
	id := publish + sink
	return []collector.Span{
		w.span("process "+sink, id, publish, "forwarder-1", from, from+9, "waybill.outcome", "delivered"),
		w.span("send "+sink, id+"s", id, "forwarder-1", from+2, from+8, "waybill.outcome", "delivered"),
		w.span("settle "+sink, id+"t", id, "janitor-1", from+11, from+13, "waybill.outcome", "delivered"),
	}
}

// refused is a delivery that the sink refused.
func (w *tracedWay) refused(sink string, from float64) []collector.Span {
	spans := w.delivered(sink, "p", from)
	for i, outcome := range []string{"refused", "refused", "dead letter"} {
		spans[i].Attributes["waybill.outcome"], spans[i].Attributes["waybill.refusal.code"] = outcome, "VALIDATION_FAILED"
		if i < 2 {
			spans[i].Failure = "refused"
		}
	}
	return spans
}

// tracesBegan is a while ago, without a fraction that the query API would lose.
func tracesBegan() time.Time { return time.Now().Add(-time.Minute).Truncate(time.Second) }

// serve offers spans, and returns the URL.
func serve(t *testing.T, spans ...[]collector.Span) string {
	t.Helper()
	kept := collector.NewRecent(10_000)
	for _, some := range spans {
		kept.Add(slices.Clone(some))
	}
	server := httptest.NewServer(jaeger.Handler(kept))
	t.Cleanup(server.Close)
	return server.URL
}

// mustBeText compares with a file, in which BEGAN stands for a time.
func mustBeText(t *testing.T, name, got string, began time.Time) {
	t.Helper()
	got = strings.ReplaceAll(got, showTime(began), "BEGAN")
	want, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got\n%s\nwant, as in testdata/%s,\n%s", got, name, want)
	}
}

const (
	traceOne = "0af7651916cd43dd8448eb211c80319c"
	traceTwo = "00000000000000000000000000000002" // whose first half servers leave out
)

// shopSpans are those of a producer that the event hangs under, and of what else it did.
func shopSpans(began time.Time) []collector.Span {
	return []collector.Span{
		{TraceID: traceOne, ID: "00000000000000f1", Name: "checkout", Service: "shop", Start: began.Add(-5 * time.Millisecond), End: began.Add(4 * time.Millisecond)},
		{TraceID: traceOne, ID: "00000000000000f2", Parent: "00000000000000f1", Name: "SELECT", Service: "shop", Start: began, End: began},
	}
}

func TestTraceTexts(t *testing.T) {
	began := tracesBegan()
	alone := &tracedWay{trace: traceOne, id: "4711", correlation: "order-7", began: began, batch: 1, parent: "00000000000000f1"}
	// Two of a batch of 300 share the trace of their request.
	member := &tracedWay{trace: traceTwo, id: "12", correlation: "12", began: began, batch: 300}
	neighbour := &tracedWay{trace: traceTwo, id: "13", correlation: "13", began: began, batch: 300}
	lost := &tracedWay{trace: traceOne, id: "lost", correlation: "lost", began: began, batch: 1}
	letter := &tracedWay{trace: traceOne, id: "bad", correlation: "bad", began: began, batch: 1}
	again := lost.span("publish EVENTS", "again", "", "janitor-1", 12_000, 12_001.5, "waybill.attempt", "1", "waybill.batch", "7.00000000000000ff")
	tried := lost.span("send ingress", "tried", "gone", "forwarder-1", 6, 506, "waybill.outcome", "not taken", "failure", "not taken")
	notStored := alone.span("accept events", "a", "", "ingest-1", 0, 3.2, "waybill.front", "http", "failure", "overloaded")
	for _, c := range []struct {
		file, id string
		spans    [][]collector.Span
	}{
		{"trace-alone.txt", "4711", [][]collector.Span{shopSpans(began), alone.accepted(), alone.delivered("ingress", "p", 4.2), alone.delivered("archive", "p", 5)}},
		{"trace-member.txt", "12", [][]collector.Span{member.accepted(), neighbour.accepted(), member.delivered("ingress", "p", 5), neighbour.delivered("ingress", "p", 5)}},
		{"trace-retransmit.txt", "lost", [][]collector.Span{lost.accepted(), lost.delivered("archive", "p", 5), {tried, again}, lost.delivered("ingress", "again", 12_002)}},
		{"trace-dead-letter.txt", "bad", [][]collector.Span{letter.accepted(), letter.refused("ingress", 5), letter.delivered("archive", "p", 5)}},
		{"trace-incomplete.txt", "bad", [][]collector.Span{letter.accepted(), letter.delivered("archive", "p", 5)[:2]}},
		{"trace-not-stored.txt", "4711", [][]collector.Span{{notStored}}},
	} {
		r := command(t, nil, "trace", c.id, "--query-url", serve(t, c.spans...))
		if r.failure != nil || r.err != "" {
			t.Fatalf("%s: %+v", c.file, r)
		}
		mustBeText(t, c.file, r.out, began)
	}
}

func TestTraceAsJSON(t *testing.T) {
	began := tracesBegan()
	w := &tracedWay{trace: traceOne, id: "4711", correlation: "order-7", began: began, batch: 1, parent: "00000000000000f1"}
	url := serve(t, shopSpans(began), w.accepted(), w.delivered("archive", "p", 5), w.refused("ingress", 5))
	r := command(t, nil, "trace", "order-7", "--query-url", url, "-o", "json")
	if r.failure != nil {
		t.Fatal(r.failure)
	}
	var e tracedEvent
	if err := json.Unmarshal([]byte(r.out), &e); err != nil {
		t.Fatal(err)
	}
	if e.ID != "4711" || e.Source != "/orders" || e.CorrelationID != "order-7" || e.TraceID != traceOne || !e.At.Equal(began) || e.Took != 0.018 || len(e.Missing) > 0 || e.ForeignSpans != 1 || len(e.Spans) != 10 {
		t.Errorf("%+v", e)
	}
	if s := e.Spans[0]; s.Name != "checkout" || !s.Foreign || s.Offset != -0.005 || s.Took != 0.009 || s.Share != 0 {
		t.Errorf("%+v", s)
	}
	if s := e.Spans[1]; s.Name != "accept events" || s.Foreign || s.Instance != "ingest-1" || s.Took != 0.0032 || s.Share < 0.177 || s.Share > 0.178 || s.Attributes["waybill.front"] != "grpc" {
		t.Errorf("%+v", s)
	}
	d := e.Deliveries
	if len(d) != 2 || d[0].Sink != "archive" || d[0].Outcome != "delivered" || d[1].Outcome != "dead letter" || d[1].Code != "VALIDATION_FAILED" || !d[1].Settled || len(d[1].Stages) != 8 {
		t.Fatalf("%+v", d)
	}
	sum := 0.0
	for _, s := range d[0].Stages {
		sum += s.Share
	}
	if last := d[0].Stages[7]; sum < 0.9999 || sum > 1.0001 || last.Stage != "settle" || last.Share != 0 || last.Offset != 0.014 || last.Took != 0.004 {
		t.Errorf("the shares add up to %v; the last stage is %+v", sum, last)
	}
}

func TestSeveralEventsMatch(t *testing.T) {
	began := tracesBegan()
	first := &tracedWay{trace: traceOne, id: "1", correlation: "order-7", began: began, batch: 1}
	second := &tracedWay{trace: traceTwo, id: "2", correlation: "order-7", began: began.Add(time.Second), batch: 1}
	url := serve(t, second.accepted(), second.refused("ingress", 5), first.accepted(), first.delivered("ingress", "p", 5))
	r := command(t, nil, "trace", "order-7", "--query-url", url)
	lines := strings.Split(r.out, "\n")
	if r.failure != nil || len(lines) != 6 || !strings.Contains(lines[1], " 1 ") || !strings.Contains(lines[1], "ingress delivered") || !strings.Contains(lines[1], traceOne) ||
		!strings.Contains(lines[2], traceTwo) || !strings.Contains(lines[2], "ingress dead letter") || !strings.HasPrefix(lines[4], "2 events match.") {
		t.Errorf("%+v", r)
	}
	for _, c := range []struct {
		args  []string
		first bool
		both  bool
	}{
		{[]string{"order-7", "--all"}, true, true},
		{[]string{"1"}, true, false},
		{[]string{"2"}, false, false},
		{[]string{"order-7", "--trace-id", strings.TrimLeft(traceTwo, "0")}, false, false},
		{[]string{"order-7", "--trace-id", strings.ToUpper(traceOne)}, true, false},
	} {
		r := command(t, nil, append([]string{"trace", "--query-url", url}, c.args...)...)
		one, two := strings.Contains(r.out, "event 1, "), strings.Contains(r.out, "event 2, ")
		if r.failure != nil || one != c.first || two == (c.first && !c.both) {
			t.Errorf("%q: %+v", c.args, r)
		}
	}
	r = command(t, nil, "trace", "order-7", "--query-url", url, "-o", "json")
	if strings.Count(r.out, "\n") != 2 {
		t.Errorf("as JSON: %+v", r)
	}
	r = command(t, nil, "trace", "order-7", "--query-url", url, "--limit", "1")
	if r.failure != nil || !strings.Contains(r.err, "--limit") {
		t.Errorf("%+v", r)
	}
}

func TestNoTrace(t *testing.T) {
	w := &tracedWay{trace: traceOne, id: "4711", correlation: "order-7", began: tracesBegan(), batch: 1}
	url := serve(t, w.accepted())
	check := []string{url, "OTEL_TRACES_SAMPLER_ARG", "OTEL_EXPORTER_OTLP_ENDPOINT", "--since", "it knows waybill-ingest"}
	mustFail(t, command(t, nil, "trace", "4712", "--query-url", url), append(check, `"4712"`)...)
	mustFail(t, command(t, nil, "trace", "4711", "--query-url", url, "--since", "30s"), check...) // it began a minute ago
	mustFail(t, command(t, nil, "trace", "4711", "--query-url", url, "--source", "/other"), append(check, "/other")...)
	mustFail(t, command(t, nil, "trace", "4711", "--query-url", url, "--trace-id", traceTwo), append(check, traceTwo)...)
	mustFail(t, command(t, nil, "trace", "4711", "--query-url", url, "--service", "ours"), append(check, "of ours since")...)
	mustFail(t, command(t, nil, "trace", "4711"), "--query-url", "WAYBILL_TRACE_QUERY_URL", "waybill dev", "WAYBILL_DIR")
	mustFail(t, command(t, nil, "trace", "4711", "--query-url", "jaeger:16686"), "--query-url", "http://jaeger:16686")
	mustFail(t, command(t, nil, "trace", "4711", "--query-url", "http://127.0.0.1:1"), "127.0.0.1:1", "refused")
	mustFail(t, command(t, nil, "trace", "4711", "--query-url", url, "--limit=0"), "--limit")
	mustFail(t, command(t, nil, "trace", "--query-url", url), "<id>")
}

// Where ingest died before it sent its spans, those of the others are found.
func TestTraceWithoutIngest(t *testing.T) {
	w := &tracedWay{trace: traceOne, id: "4711", correlation: "order-7", began: tracesBegan(), batch: 1}
	r := command(t, nil, "trace", "4711", "--query-url", serve(t, w.delivered("ingress", "p", 5)))
	if r.failure != nil || !strings.Contains(r.out, "there is no span of the acceptance, the transaction, the publishing") || !strings.Contains(r.out, "settle ingress") {
		t.Errorf("%+v", r)
	}
}

func TestBars(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	f := frame{at, 32 * time.Second}
	for _, c := range []struct {
		from, took int // seconds
		want       string
	}{
		{0, 32, strings.Repeat("█", 32)},
		{1, 2, " ██" + strings.Repeat(" ", 29)},
		{31, 1, strings.Repeat(" ", 31) + "█"},
		{32, 0, strings.Repeat(" ", 31) + "▏"},
		{5, 0, "     ▏" + strings.Repeat(" ", 26)},
		{-100, 1000, strings.Repeat("█", 32)}, // of the producer
		{-100, 10, "▏" + strings.Repeat(" ", 31)},
	} {
		if got := f.bar(at.Add(time.Duration(c.from)*time.Second), time.Duration(c.took)*time.Second); got != c.want {
			t.Errorf("%d s from %d s on: %q, want %q", c.took, c.from, got, c.want)
		}
	}
	if got := (frame{start: at}).bar(at, 0); got != "▏"+strings.Repeat(" ", 31) {
		t.Errorf("of no time at all: %q", got)
	}
	for d, want := range map[time.Duration]string{
		1234 * time.Microsecond: "1.23 ms", -5 * time.Millisecond: "-5.00 ms", 1500 * time.Millisecond: "1.50 s ", 3 * time.Minute: "3m0s   ",
	} {
		if got := showLength(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}
