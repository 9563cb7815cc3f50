package pipeline

import (
	"bytes"
	"context"
	"encoding/json"
	"math"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

// emittedParts are what the events of the property are made of, valid and not.
var emittedParts = struct {
	texts []string
	times []time.Time
	data  []Data
}{
	[]string{"", "/s", "t", "application/json", "application/protobuf; a=b", "text/plain", "a/b/c", "%zz", "https://example.com/s", "grüezi", "\xff", "n\x00", "seqnum", "subject", "traceparent", "tracestate", "x", "key"},
	[]time.Time{{}, time.Unix(0, 0), time.Unix(-1, 1), time.Date(9999, 12, 31, 23, 59, 59, 999999999, time.UTC), time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)},
	[]Data{{}, BinaryData(nil), BinaryData([]byte{0, 255}), BinaryData(make([]byte, 900)), TextData(""), TextData("a"), TextData("\xff"), JSONData(1), JSONData(math.NaN()), JSONData(json.RawMessage(`{"a":[]}`))},
}

func drawEmitted(t *rapid.T) CloudEvent {
	text := func(name string) string { return rapid.SampledFrom(emittedParts.texts).Draw(t, name) }
	at := func() time.Time { return rapid.SampledFrom(emittedParts.times).Draw(t, "at") }
	or := func(name, usual string) string { // valid more often than not
		if oneIn(t, 8, name+" is odd") {
			return text(name)
		}
		return usual
	}
	e := CloudEvent{
		Source: or("source", "/s"), Type: or("type", "t"), ID: or("id", "1"),
		Subject: or("subject", ""), DataContentType: or("content type", ""), DataSchema: or("schema", ""),
		Time: at(), Data: rapid.SampledFrom(emittedParts.data).Draw(t, "data"),
	}
	for range rapid.IntRange(0, 3).Draw(t, "extensions") {
		if e.Extensions == nil {
			e.Extensions = map[string]AttributeValue{}
		}
		e.Extensions[or("name", "key")] = rapid.SampledFrom([]AttributeValue{
			{},
			StringValue(text("text")), IntegerValue(math.MinInt32), IntegerValue(0), BooleanValue(false), BooleanValue(true),
			BinaryValue([]byte(text("bytes"))), URIValue(text("uri")), URIReferenceValue(text("reference")), TimestampValue(at()),
		}).Draw(t, "value")
	}
	return e
}

// What is encoded without NewEvent is what NewEvent makes of the same event, and never what it
// refuses.
func TestQuickEncodingIsThatOfNewEvent(t *testing.T) {
	const limit = 1000
	quick, slow := 0, 0
	span := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}})
	rapid.Check(t, func(t *rapid.T) {
		e := drawEmitted(t)
		ctx := context.Background()
		if oneIn(t, 2, "traced") {
			ctx = trace.ContextWithSpanContext(ctx, span)
		}
		identifyBy := rapid.SampledFrom([]string{"", "key"}).Draw(t, "identified by")
		got, ok := e.encode(ctx, limit, identifyBy)
		want, ce, err := newEventOf(ctx, e, limit, identifyBy)
		if !ok {
			slow++
			return
		}
		quick++
		if err != nil {
			t.Fatalf("%+v is encoded, and NewEvent says %v", e, err)
		}
		decoded := &pb.CloudEvent{}
		if err := proto.Unmarshal(got.Encoded, decoded); err != nil {
			t.Fatal(err)
		}
		if e.ID == "" {
			ce.Id, want.ID, want.Fingerprint = got.ID, got.ID, got.Fingerprint // a random one
		}
		if !proto.Equal(decoded, ce) || got.Source != want.Source || got.Type != want.Type || got.ID != want.ID || got.Fingerprint != want.Fingerprint {
			t.Fatalf("%+v is encoded as\n%v %v\nwant\n%v %v", e, got, decoded, want, ce)
		}
	})
	if quick < 10 || slow < 10 {
		t.Errorf("%d events were encoded the quick way and %d the slow one: the test tries nothing", quick, slow)
	}
}

// newEventOf is what NewEvent makes of an event, and of which protobuf.
func newEventOf(ctx context.Context, e CloudEvent, limit int, identifyBy string) (Event, *pb.CloudEvent, error) {
	ce, err := e.message(ctx)
	if err != nil {
		return Event{}, nil, err
	}
	event, err := NewEvent(ce, limit)
	if err == nil && identifyBy != "" {
		event.IdentifyBy(ce, identifyBy)
	}
	return event, ce, err
}

// Most events go the quick way.
func TestUsualEventsAreEncodedTheQuickWay(t *testing.T) {
	e := CloudEvent{
		Source: "/orders", Type: "order.placed", Subject: "o", Time: time.Now(), DataSchema: "https://example.com/s", Data: JSONData("x"),
		Extensions: map[string]AttributeValue{"a": StringValue("b"), "n": IntegerValue(-1), "f": BooleanValue(false), "at": TimestampValue(time.Now())},
	}
	if _, ok := e.encode(t.Context(), DefaultMaxEventBytes, ""); !ok {
		t.Error("an event with everything takes the slow way")
	}
}

func BenchmarkEncodeEmitted(b *testing.B) {
	e := CloudEvent{Source: "/bench/12345678/7", Type: "bench.type3", ID: "0123456789abcdef0123", Data: BinaryData(bytes.Repeat([]byte("x"), 256))}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := encodeEmitted(context.Background(), &e, DefaultMaxEventBytes, ""); err != nil {
			b.Fatal(err)
		}
	}
}
