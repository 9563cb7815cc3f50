package pipeline

import (
	"context"
	"fmt"
	"maps"
	"testing"

	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// sent is an event's encoding as a sink gets it.
func sent(t testing.TB, source, typ string, seqnum int64) []byte {
	t.Helper()
	events, err := splitBody(appendEvent(nil, mustEvent(t, source, typ, "id").Encoded, seqnum), 1)
	if err != nil {
		t.Fatal(err)
	}
	return events[0]
}

func TestKeyAndSeqnumOfAnEncodedEvent(t *testing.T) {
	for _, seqnum := range []int64{1, 9, 10, 123456, 999_999_999_999_999_999} {
		event := sent(t, "/a/source", "a.type", seqnum)
		source, typ := keyOfEncoded(event)
		if string(source) != "/a/source" || string(typ) != "a.type" || seqnumOfEncoded(event) != seqnum {
			t.Errorf("read %q, %q and %d, want seqnum %d", source, typ, seqnumOfEncoded(event), seqnum)
		}
	}
	// Fields in another order, and a producer's digits at the end.
	other, err := proto.Marshal(&pb.CloudEvent{Type: "t", Source: "s", Data: &pb.CloudEvent_TextData{TextData: "seqnum\x12\x04\x1a\x022 42"}})
	if err != nil {
		t.Fatal(err)
	}
	other = append(protowire.AppendVarint(protowire.AppendTag(nil, 900, protowire.VarintType), 7), other...)
	if source, typ := keyOfEncoded(other); string(source) != "s" || string(typ) != "t" || seqnumOfEncoded(other) != 0 {
		t.Errorf("read %q, %q and %d", source, typ, seqnumOfEncoded(other))
	}
	for _, broken := range [][]byte{nil, {0xff}, []byte("123"), {0x0a, 200, 1}} {
		if source, typ := keyOfEncoded(broken); source != nil || typ != nil || seqnumOfEncoded(broken) != 0 {
			t.Errorf("%x: read %q, %q and %d", broken, source, typ, seqnumOfEncoded(broken))
		}
	}
}

// deliveries collects what a forwarder's metrics have of a sink, by name and what tells it apart.
func deliveries(t *testing.T, reader sdkmetric.Reader) map[string]int64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &all); err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			if sum, ok := m.Data.(metricdata.Sum[int64]); ok {
				for _, p := range sum.DataPoints {
					outcome, _ := p.Attributes.Value("outcome")
					source, _ := p.Attributes.Value("source")
					typ, _ := p.Attributes.Value("type")
					got[fmt.Sprintf("%s %s %s %s", m.Name, outcome.AsString(), source.AsString(), typ.AsString())] += p.Value
				}
			}
		}
	}
	return got
}

// What a sink took and refused counts by source and type, and what came behind a later event of
// its key is an inversion.
func TestDeliveriesAreCountedByKey(t *testing.T) {
	reader := sdkmetric.NewManualReader()
	meter := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)).Meter("test")
	m, err := newForwarderMetrics(meter)
	if err != nil {
		t.Fatal(err)
	}
	sink := m.of(&recorder{name: "ingress"})
	out := &outlet{sink: &recorder{name: "ingress"}, metrics: sink, breaker: newBreaker(1, 1, 1)}
	if err := m.observe(meter, &Forwarder{outlets: []*outlet{out}}); err != nil {
		t.Fatal(err)
	}
	order := newOrderWatch()
	batch := func(events ...[]byte) *Batch { return &Batch{Events: events} }
	sink.resolved(batch(sent(t, "/s", "a", 1), sent(t, "/s", "b", 1), sent(t, "/s", "a", 2)), nil, order)
	sink.resolved(batch(sent(t, "/s", "a", 5), sent(t, "/s", "b", 2)), []Refusal{{Index: 1}}, order)
	sink.resolved(batch(sent(t, "/s", "a", 3), sent(t, "/s", "a", 5), sent(t, "/s", "b", 3)), nil, order)
	got := deliveries(t, reader)
	want := map[string]int64{
		"waybill.forwarder.events delivered /s a": 5,
		"waybill.forwarder.events delivered /s b": 2,
		"waybill.forwarder.events refused /s b":   1,
		"waybill.forwarder.order.inversions   ":   1, // 3 behind 5
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestKeyCountsAreBounded(t *testing.T) {
	c := NewKeyCounts(2)
	c.Add(func(yield func(string, string) bool) {
		for _, typ := range []string{"a", "b", "c", "a", "d"} {
			yield("/s", typ)
		}
	})
	c.addBytes(func(yield func([]byte, []byte) bool) {
		yield([]byte("/s"), []byte("b"))
		yield([]byte("/s"), []byte("e"))
	})
	if n := len(c.known); n != 2 {
		t.Fatalf("%d keys have counts, want 2", n)
	}
	for typ, want := range map[string]int64{"a": 2, "b": 2} {
		if n := c.known[keyName{"/s", typ}].n.Load(); n != want {
			t.Errorf("%s: %d, want %d", typ, n, want)
		}
	}
	if n := c.other.n.Load(); n != 3 {
		t.Errorf("%d others, want 3", n)
	}
}

func BenchmarkCountDelivered(b *testing.B) {
	m, err := newForwarderMetrics(testMeter)
	if err != nil {
		b.Fatal(err)
	}
	s := m.of(&recorder{name: "ingress"})
	batch := &Batch{}
	for i := range 100 {
		batch.Events = append(batch.Events, sent(b, fmt.Sprintf("/source/%d", i%20), "a.type", int64(i)))
	}
	order := newOrderWatch()
	b.ReportAllocs()
	for b.Loop() {
		s.count(batch, nil, order)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(batch.Events)), "ns/event")
}
