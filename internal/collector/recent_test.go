package collector

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
)

// began is when the spans of the tests begin; their number is what they are later, in seconds.
var began = time.Unix(1_800_000_000, 0)

func spanAt(trace string, n int) Span {
	at := began.Add(time.Duration(n) * time.Second)
	return Span{TraceID: trace, ID: fmt.Sprint(n), Service: "of " + trace, Start: at, End: at, Attributes: map[string]string{"n": fmt.Sprint(n)}}
}

func idsOf(spans []Span) (ids []string) {
	for _, s := range spans {
		ids = append(ids, s.ID)
	}
	return ids
}

func TestTheOldestTraceGoesWhole(t *testing.T) {
	r := NewRecent(25)
	for n := range 5 {
		for _, trace := range []string{"a", "b", "c", "d", "e"} {
			r.Add([]Span{spanAt(trace, n)})
		}
	}
	r.Add([]Span{spanAt("a", 5)})                 // a is the newest now, and has lost its older half
	r.Add([]Span{spanAt("f", 1), spanAt("f", 0)}) // which made room for these
	if got := idsOf(r.Trace("b")); len(got) != 5 {
		t.Errorf("b has the spans %v, want all 5", got)
	}
	if got := idsOf(r.Trace("a")); !slices.Equal(got, []string{"4", "5"}) {
		t.Errorf("a has the spans %v, want the newest", got)
	}
	if got := idsOf(r.Trace("f")); !slices.Equal(got, []string{"0", "1"}) {
		t.Errorf("f has the spans %v, want them by their beginning", got)
	}
	r.Add([]Span{spanAt("f", 2), spanAt("f", 3), spanAt("f", 4)})
	if got := r.Trace("b"); got != nil {
		t.Errorf("the trace without a new span for longest still has %v", idsOf(got))
	}
	if got := idsOf(r.Trace("c")); len(got) != 5 {
		t.Errorf("c has the spans %v, want all 5", got)
	}
	if all := r.Spans(); len(all) != r.count || len(all) > 25 {
		t.Errorf("%d spans are kept, and %d counted; want at most 25", len(all), r.count)
	}
	if got := r.Services(); !slices.Equal(got, []string{"of a", "of c", "of d", "of e", "of f"}) {
		t.Errorf("services: %q", got)
	}
}

func TestOneTraceDoesNotDriveOutTheOthers(t *testing.T) {
	r := NewRecent(100)
	r.Add([]Span{spanAt("small", 0)})
	for n := range 1000 {
		r.Add([]Span{spanAt("large", n)})
	}
	if got := r.Trace("small"); len(got) != 1 {
		t.Errorf("the small trace has %d spans, want 1", len(got))
	}
	if got := r.Trace("large"); len(got) < 10 || len(got) > 20 || got[len(got)-1].ID != "999" {
		t.Errorf("the large trace has %v, want the newest 10 to 20", idsOf(got))
	}
}

func TestFindReturnsTheNewestFirst(t *testing.T) {
	r := NewRecent(100)
	for n, trace := range []string{"a", "b", "c", "b", "a"} {
		r.Add([]Span{spanAt(trace, n)})
	}
	found := func(limit int, match func(*Span) bool) (traces []string) {
		for _, spans := range r.Find(limit, match) {
			traces = append(traces, spans[0].TraceID)
		}
		return traces
	}
	if got := found(2, func(*Span) bool { return true }); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("the newest two are %v", got)
	}
	if got := found(9, func(s *Span) bool { return s.Attributes["n"] == "1" }); !slices.Equal(got, []string{"b"}) {
		t.Errorf("found %v, want b alone", got)
	}
}

// exported is a request with the spans of one event, as the processes send them.
func exported(event int) *collectorpb.ExportTraceServiceRequest {
	text := func(key, value string) *commonpb.KeyValue {
		return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: value}}}
	}
	number := func(key string, value int64) *commonpb.KeyValue {
		return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: value}}}
	}
	id := fmt.Sprintf("0198c8f1-4b6e-7c02-9a54-%012d", event)
	var spans []*tracepb.Span
	for i := range 9 {
		spans = append(spans, &tracepb.Span{
			TraceId: fmt.Appendf(nil, "%016d", event), SpanId: fmt.Appendf(nil, "%08d", 9*event+i), ParentSpanId: fmt.Appendf(nil, "%08d", 9*event),
			Name: fmt.Sprint("process ", i), Kind: tracepb.Span_SPAN_KIND_CONSUMER, StartTimeUnixNano: uint64(event), EndTimeUnixNano: uint64(event) + 1,
			Status: &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: "refused"},
			Attributes: []*commonpb.KeyValue{
				text("cloudevents.event_id", id), text("cloudevents.event_source", "/orders/europe"), text("cloudevents.event_type", "com.example.order.paid"),
				text("messaging.message.id", id), text("messaging.message.conversation_id", id), text("messaging.system", "nats"),
				text("messaging.operation.name", "process"), text("messaging.operation.type", "process"), text("messaging.destination.name", "EVENTS"),
				text("messaging.destination.partition.id", fmt.Sprint(i)), text("messaging.consumer.group.name", fmt.Sprint("ingress-", i)),
				text("waybill.batch", fmt.Sprintf("%d.%016x", event, event)), number("waybill.attempt", 0), text("waybill.sink", "ingress"), text("waybill.outcome", "delivered"),
			},
		})
	}
	return &collectorpb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource:   &resourcepb.Resource{Attributes: []*commonpb.KeyValue{text("service.name", "waybill-forwarder"), text("service.instance.id", "forwarder-1")}},
		ScopeSpans: []*tracepb.ScopeSpans{{Spans: spans}},
	}}}
}

func TestSpansAreReceived(t *testing.T) {
	r := NewRecent(100)
	receiver, err := Listen("127.0.0.1:0", r.Add)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := receiver.Close(); err != nil {
			t.Error(err)
		}
	}()
	conn, err := grpc.NewClient(receiver.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := collectorpb.NewTraceServiceClient(conn).Export(t.Context(), exported(7), grpc.UseCompressor("gzip")); err != nil {
		t.Fatal(err)
	}
	spans := r.Spans()
	if len(spans) != 9 {
		t.Fatalf("%d spans are there, want 9", len(spans))
	}
	s := spans[0]
	if s.Service != "waybill-forwarder" || s.Instance != "forwarder-1" || s.Failure != "refused" || s.Attributes["waybill.attempt"] != "0" || s.Took() != 1 {
		t.Errorf("%+v", s)
	}
}

// TestRecentTakesWhatItSays fills it several times over with events as they are.
func TestRecentTakesWhatItSays(t *testing.T) {
	const most = 20_000
	inUse := func() int64 {
		var stats runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&stats)
		return int64(stats.HeapAlloc)
	}
	r := NewRecent(most)
	receiver := &Receiver{take: r.Add}
	before := inUse()
	for event := range 2 * most / 9 {
		if _, err := receiver.Export(t.Context(), exported(event)); err != nil {
			t.Fatal(err)
		}
	}
	kept := inUse() - before
	if n := len(r.Spans()); n > most || n < most-9 {
		t.Errorf("%d spans are kept, want %d", n, most)
	}
	if kept > 2000*most {
		t.Errorf("%d spans take %d bytes each, want about 1800", most, kept/most)
	}
	t.Logf("%d bytes a span", kept/most)
	runtime.KeepAlive(r)
}
