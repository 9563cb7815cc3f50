package pipeline

import (
	"encoding/hex"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

const (
	someTrace  = "0af7651916cd43dd8448eb211c80319c"
	someParent = "00-" + someTrace + "-b7ad6b7169203331-01"
)

// W3C's rules, as OpenTelemetry applies them.
func TestTraceparentIsReadAsTheStandardWantsIt(t *testing.T) {
	for _, text := range []string{
		someParent,
		"00-" + someTrace + "-b7ad6b7169203331-00",
		"00-" + someTrace + "-b7ad6b7169203331-03",
		"01-" + someTrace + "-b7ad6b7169203331-01",
		"01-" + someTrace + "-b7ad6b7169203331-01-more",
		"01-" + someTrace + "-b7ad6b7169203331-01more",
		"00-" + someTrace + "-b7ad6b7169203331-01-more",
		"ff-" + someTrace + "-b7ad6b7169203331-01",
		"00-" + strings.Repeat("0", 32) + "-b7ad6b7169203331-01",
		"00-" + someTrace + "-0000000000000000-01",
		strings.ToUpper(someParent), someParent[:54], "", "00", "mine",
		strings.Replace(someParent, "-", "_", 1), strings.Replace(someParent, "7", "g", 1),
	} {
		want := trace.SpanContextFromContext(propagation.TraceContext{}.Extract(t.Context(), propagation.MapCarrier{"traceparent": text}))
		got, ok := parseTraceparent(text)
		if ok != want.IsValid() || got.TraceID() != want.TraceID() || got.SpanID() != want.SpanID() || got.IsSampled() != want.IsSampled() {
			t.Errorf("%q: %v %v, want %v", text, got, ok, want)
		}
		if again, _ := parseTraceparent([]byte(formatTraceparent(got))); ok && !again.Equal(got) {
			t.Errorf("%q: is written as %q", text, formatTraceparent(got))
		}
	}
}

func mustTracedEvent(t *testing.T, id string, attributes map[string]string) Event {
	t.Helper()
	ce := &pb.CloudEvent{Id: id, Source: "/trace", Type: "traced", SpecVersion: "1.0", Attributes: map[string]*pb.CloudEventAttributeValue{}}
	for name, value := range attributes {
		ce.Attributes[name] = &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeString{CeString: value}}
	}
	e, err := NewEvent(ce, DefaultMaxEventBytes)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// sampling is a Tracing without spans that takes what is sampled by its parent, or has none.
func sampling() *Tracing {
	return NewTracing(noop.NewTracerProvider(), func(parent trace.SpanContext, _ trace.TraceID) bool {
		return !parent.IsValid() || parent.IsSampled()
	})
}

func TestAnEventsTraceIsReadFromItsEncoding(t *testing.T) {
	for _, c := range []struct {
		name, correlation, parent string
		attributes                map[string]string
	}{
		{"both", "order-7", someTrace, map[string]string{"traceparent": someParent, "correlationid": "order-7", "subject": "s"}},
		{"no correlation", "id-1", someTrace, map[string]string{"traceparent": someParent}},
		{"malformed", "id-1", "", map[string]string{"traceparent": "mine"}},
		{"no trace", "order-7", "", map[string]string{"correlationid": "order-7"}},
	} {
		event := mustTracedEvent(t, "id-1", c.attributes)
		got := sampling().sample(event.Encoded)
		if got == nil || got.id != "id-1" || got.source != "/trace" || got.typ != "traced" || got.correlation != c.correlation {
			t.Fatalf("%s: %+v", c.name, got)
		}
		id := got.trace
		if want := c.parent; want == "" {
			// What a forwarder reads has the seqnum in it, too.
			body := appendEvent(nil, event.Encoded, 7)
			events, err := splitBody(body, 1)
			if err != nil {
				t.Fatal(err)
			}
			if again := sampling().sample(events[0]); got.parent.IsValid() || !id.IsValid() || again.trace != id {
				t.Errorf("%s: the trace is %v and %v, of %v", c.name, id, again.trace, got.parent)
			}
		} else if hex.EncodeToString(id[:]) != want || got.parent.TraceID() != id {
			t.Errorf("%s: trace %v, want %s", c.name, id, want)
		}
	}
	a, b := mustTracedEvent(t, "id-1", nil), mustTracedEvent(t, "id-2", nil)
	if sampling().sample(a.Encoded).trace == sampling().sample(b.Encoded).trace {
		t.Error("two events have one trace")
	}
	unsampled := mustTracedEvent(t, "id-1", map[string]string{"traceparent": someParent[:54] + "0"})
	if got := sampling().sample(unsampled.Encoded); got != nil {
		t.Errorf("an event whose parent is not sampled is: %+v", got)
	}
	long := mustTracedEvent(t, "id-1", map[string]string{"correlationid": strings.Repeat("ü", MaxIDBytes)})
	if got := sampling().sample(long.Encoded).correlation; got != strings.Repeat("ü", MaxIDBytes/2) {
		t.Errorf("a correlation id of %d bytes is kept as %d bytes", 2*MaxIDBytes, len(got))
	}
	for cut := range a.Encoded { // whatever it is, nothing is read beyond its end
		sampling().sample(a.Encoded[:cut])
	}
}

// What is kept of a sampled event is short, whatever is in it: an exporter whose receiver is away
// holds thousands.
func TestSampledEventsKeepLittle(t *testing.T) {
	const count, size = 16, 1 << 20
	event := mustTracedEvent(t, "id-1", map[string]string{"correlationid": strings.Repeat("c", size-256)})
	inUse := func() int64 {
		var stats runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&stats)
		return int64(stats.HeapAlloc)
	}
	before := inUse()
	var sampled []*tracedEvent
	for range count {
		sampled = append(sampled, sampling().sample(event.Encoded))
	}
	if kept := inUse() - before; kept > size {
		t.Errorf("%d events keep %d KiB", count, kept>>10)
	}
	runtime.KeepAlive(sampled)
}

// With tracing off nothing is allocated and no message has one header more.
func TestTracingThatIsOffCostsNothing(t *testing.T) {
	var off *Tracing
	events := []Event{mustTracedEvent(t, "id-1", map[string]string{"traceparent": someParent})}
	f, err := newFlush(events, 4, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	b := &Batch{ID: BatchID{Number: 1, Token: 2}, count: 1}
	msg := b.message(nil)
	headers := len(msg.Header)
	r := &request{held: []held{{batch: b}}}
	now := time.Now()
	if n := testing.AllocsPerRun(100, func() {
		off.Accept("grpc", now, events).Answered(nil)
		off.committed(events, now, nil)
		b.traced = f.traced(&f.batches[0])
		off.publishing(b, msg).stored(nil)
		off.republishing(b, nil, msg).stored(nil)
		off.took(r)
		off.sent("ingress", r, nil, now, nil, nil)
		off.processed("ingress", 0, r)
		r.nameTraced(nil)
		off.settled(nil, now)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if len(msg.Header) != headers {
		t.Errorf("headers: %v", msg.Header)
	}
	if on := sampling(); on.publishing(b, msg) != nil || len(msg.Header) != headers {
		t.Errorf("a batch without sampled events has the headers %v", msg.Header)
	}
}

// The forwarder knows the spans of ingest from the message alone.
func TestSpansOfABatchAreKnownFromItsMessage(t *testing.T) {
	tracing := sampling()
	var events []Event
	for i := range 300 {
		flags := "01"
		if i%2 == 1 {
			flags = "00"
		}
		events = append(events, mustTracedEvent(t, fmt.Sprint(i), map[string]string{
			"traceparent": fmt.Sprintf("00-%032x-%016x-%s", i+1, i+1, flags),
		}))
	}
	tracing.Accept("grpc", time.Now(), events)
	marked := 0
	for _, e := range events {
		if e.traced != nil {
			marked++
		}
	}
	if marked != 150 {
		t.Fatalf("%d events are sampled, want 150", marked)
	}
	f, err := newFlush(events, 1, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	f.numberEvents(make([]int64, len(f.keys)))
	f.batches[0].number = 1
	out := f.appended([]batchMeta{{}})
	b := &out.batches[0]
	msg := b.message(out.bodies[0])
	h := tracing.publishing(b, msg)
	came, err := parseMessage(0, msg.Header, msg.Data)
	if err != nil {
		t.Fatal(err)
	}
	r := &request{}
	r.add(held{batch: came}, true)
	tracing.took(r)
	if len(r.traced) != maxTraced || len(h.members) != maxTraced {
		t.Fatalf("%d of 150 are traced, and %d were published; want %d", len(r.traced), len(h.members), maxTraced)
	}
	seen := map[trace.SpanID]bool{}
	for i, item := range r.traced {
		published := h.spanOf(h.members[i].tracedEvent, h.members[i].index)
		if !item.parent.Equal(published) || item.at != 2*i || item.trace != h.members[i].trace || seen[published.SpanID()] {
			t.Fatalf("item %d: parent %v of item %d, and the event was published by %v", i, item.parent, item.at, published)
		}
		seen[published.SpanID()] = true
	}
	receipts := r.receipts()
	if n := len(receipts[0].Traced); n != maxTraced {
		t.Errorf("the receipt names %d events, want %d", n, maxTraced)
	}
	if last := receipts[0].Traced[maxTraced-1]; last.Index != 2*(maxTraced-1) {
		t.Errorf("the last one that the receipt names is %+v", last)
	}
}

// A request of very many events that are all sampled has few spans.
func TestARequestHasABoundedNumberOfSpans(t *testing.T) {
	var events []Event
	for i := range 2 * maxTraced {
		events = append(events, mustTracedEvent(t, fmt.Sprint(i), map[string]string{"traceparent": someParent}))
	}
	accepting := sampling().Accept("grpc", time.Now(), events)
	if len(accepting.events) != maxTraced {
		t.Errorf("%d events have spans of their acceptance, want %d", len(accepting.events), maxTraced)
	}
	for i, e := range events {
		// What comes behind hangs under a span that there is.
		if own := !e.traced.accepted.Equal(e.traced.parent); own != (i < maxTraced) {
			t.Errorf("event %d: a span of its own: %v", i, own)
		}
	}
}

func TestReceiptsOfBeforeAreRead(t *testing.T) {
	old := `{"sink":"ingress","lane":3,"batches":[{"batch":"7.00000000000000ff"}]}`
	traced := `{"sink":"ingress","lane":3,"batches":[{"batch":"7.00000000000000ff","traced":[{"index":1,"traceparent":"` + someParent + `"}]}]}`
	for _, line := range []string{old, traced} {
		receipts, err := parseReceipts([]byte(line))
		if err != nil || receipts[0].Batches[0].ID != (BatchID{7, 255}) {
			t.Errorf("%s: %v, %v", line, receipts, err)
		}
		lines, err := encodeReceipts("ingress", 3, receipts[0].Batches)
		if err != nil || len(lines) != 1 || string(lines[0]) != line {
			t.Errorf("%s is written as %s, %v", line, lines, err)
		}
	}
}

// What is traced gives way to what is refused.
func TestARefusalGoesBeforeATrace(t *testing.T) {
	b := BatchReceipt{ID: BatchID{1, 1}}
	for i := range MaxBatchEvents {
		b.Refused = append(b.Refused, Refusal{Index: i, Code: strings.Repeat("C", maxRefusalCode), Reason: strings.Repeat("r", maxRefusalReason)})
	}
	for i := range maxTracedReceipt {
		b.Traced = append(b.Traced, TracedEvent{Index: i, Parent: someParent})
	}
	line, err := encodeBatchReceipt(b)
	if err != nil || len(line) > maxReceiptMessage {
		t.Fatalf("%d bytes, %v", len(line), err)
	}
	receipts, err := parseReceipts([]byte(`{"sink":"s","batches":[` + string(line) + `]}`))
	if err != nil || len(receipts[0].Batches[0].Refused) != MaxBatchEvents || receipts[0].Batches[0].Traced != nil {
		t.Errorf("%v", err)
	}
}
