package intake

import (
	"bytes"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/waybillhq/waybill/pipeline"
)

func mustEncode(t testing.TB, m proto.Message) []byte {
	t.Helper()
	encoded, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return encoded
}

// An event is the same whether it was kept as it came or decoded and encoded again, the trace
// of its request and the attribute that identifies it included.
func TestKeptEventsAreTheDecodedOnes(t *testing.T) {
	traces := []traceContext{{}, {parent: "p"}, {parent: "p", state: "s"}}
	for i, attributes := range []map[string]string{
		nil, {"traceparent": "own"}, {"tracestate": "own"}, {"idempotencykey": "7"}, {"idempotencykey": ""},
	} {
		for _, trace := range traces {
			for _, dedupe := range []string{"", "idempotencykey"} {
				ce := validEvent(fmt.Sprint(i))
				ce.Attributes = map[string]*pb.CloudEventAttributeValue{"emitter": stringValue("é")}
				for name, value := range attributes {
					ce.Attributes[name] = stringValue(value)
				}
				encoded := mustEncode(t, ce)
				e := &encoder{maxEventBytes: 1 << 20, dedupeAttribute: dedupe, trace: trace}
				got, ok := e.kept(encoded)
				want := e.item(ce, nil)
				if !ok {
					t.Fatalf("%v: decoded, although it may be kept", ce)
				}
				a, b := new(pb.CloudEvent), new(pb.CloudEvent)
				if err := proto.Unmarshal(got.event.Encoded, a); err != nil {
					t.Fatal(err)
				}
				if err := proto.Unmarshal(want.event.Encoded, b); err != nil {
					t.Fatal(err)
				}
				if !proto.Equal(a, b) {
					t.Errorf("kept as\n%v, decoded as\n%v", a, b)
				}
				got.event.Encoded, want.event.Encoded = nil, nil
				if got.id != want.id || fmt.Sprint(got.event) != fmt.Sprint(want.event) {
					t.Errorf("kept as %+v, decoded as %+v", got, want)
				}
			}
		}
	}
}

// An identifying attribute of another type than text has a canonical text, for which it is
// decoded.
func TestIdentifyingNumberIsDecoded(t *testing.T) {
	ce := validEvent("1")
	ce.Attributes = make(map[string]*pb.CloudEventAttributeValue)
	ce.Attributes["idempotencykey"] = &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeInteger{CeInteger: 7}}
	e := &encoder{maxEventBytes: 1 << 20, dedupeAttribute: "idempotencykey"}
	number := e.protobuf(mustEncode(t, ce))
	ce.Attributes["idempotencykey"] = stringValue("7")
	if text := e.protobuf(mustEncode(t, ce)); number.fault != nil || number.event.Fingerprint != text.event.Fingerprint {
		t.Errorf("7 and %q are two events: %+v", "7", number)
	}
}

// The limit of an event counts what its request's trace adds to it, whichever way it goes.
func TestEventLimitOfKeptEvents(t *testing.T) {
	encoded := mustEncode(t, validEvent("1"))
	trace := traceContext{parent: "p"}
	with := len(encoded) + pipeline.TextSize(traceParent, "p")
	for limit, fits := range map[int]bool{with: true, with - 1: false} {
		e := &encoder{maxEventBytes: limit, trace: trace}
		it := e.protobuf(encoded)
		if (it.fault == nil) != fits || !fits && !it.fault.TooLarge {
			t.Errorf("limit %d: %+v", limit, it.fault)
		}
	}
}

// What is charged for the events of a request is the memory that they keep, however much else
// was expected, and most of that is theirs where they are many.
func TestArenaCountsItsMemory(t *testing.T) {
	for _, sizes := range [][]int{{1}, {100, 100, 100}, {5000, 5000}, slices.Repeat([]int{apartBytes}, 100), slices.Repeat([]int{3000, 70_000, 10}, 30)} {
		for _, junk := range []int{0, 1 << 20} {
			a := arena{expected: junk}
			var taken int64
			for _, size := range sizes {
				a.expected += size
				taken += int64(size)
			}
			kept := make([][]byte, 0, len(sizes))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for _, size := range sizes {
				kept = append(kept, a.take(size))
			}
			runtime.ReadMemStats(&after)
			allocated := int64(after.TotalAlloc - before.TotalAlloc)
			for i := range kept {
				if len(kept[i]) != 0 || cap(kept[i]) != sizes[i] {
					t.Errorf("%d bytes asked for, got %d of %d", sizes[i], len(kept[i]), cap(kept[i]))
				}
			}
			// The allocator rounds up, by an eighth at most where it is not a few bytes.
			if held := taken + a.unused; held > allocated || held < allocated*7/8-64 {
				t.Errorf("%d events with %d bytes of junk: %d bytes are charged, %d were allocated", len(sizes), junk, held, allocated)
			}
			if a.unused > taken/15+pieceBytes {
				t.Errorf("%d events with %d bytes of junk: %d bytes are unused, %d are taken", len(sizes), junk, a.unused, taken)
			}
		}
	}
}

// The events of one request do not run into each other.
func TestKeptEventsAreApart(t *testing.T) {
	var events []*pb.CloudEvent
	for i := range 300 {
		ce := validEvent(fmt.Sprint(i))
		ce.Data = &pb.CloudEvent_BinaryData{BinaryData: bytes.Repeat([]byte{byte(i)}, 7*i)}
		events = append(events, ce)
	}
	e := &encoder{maxEventBytes: 1 << 20, trace: traceContext{parent: "p", state: "s"}}
	items, err := decodeProtobufBatch(protobufBatch(t, events...), 1000, e)
	if err != nil {
		t.Fatal(err)
	}
	for i, it := range items {
		got := new(pb.CloudEvent)
		if err := proto.Unmarshal(it.event.Encoded, got); err != nil || got.Attributes[traceState].GetCeString() != "s" {
			t.Errorf("event %d: %v, %v", i, got, err)
		}
		delete(got.Attributes, traceParent)
		delete(got.Attributes, traceState)
		if !proto.Equal(got, events[i]) {
			t.Errorf("event %d became\n%v", i, got)
		}
	}
}

// A StreamEventsRequest is read as protobuf reads it.
func TestReadStreamEventsRequest(t *testing.T) {
	one, two := mustEncode(t, validEvent("one")), mustEncode(t, &pb.CloudEvent{Id: "two"})
	wrap := func(events ...[]byte) (message []byte) {
		for _, e := range events {
			message = protowire.AppendBytes(protowire.AppendTag(message, 1, protowire.BytesType), e)
		}
		return message
	}
	for name, c := range map[string]struct {
		message []byte
		id      string
		fault   string
		fails   bool
	}{
		"one event":           {message: wrap(one), id: "one"},
		"two, merged":         {message: wrap(one, two), id: "two"},
		"a later version":     {message: append(wrap(one), 0x10, 1), id: "one"},
		"none":                {fault: "is missing"},
		"an empty one":        {message: wrap(nil), fault: "is required"},
		"a broken one":        {message: wrap([]byte{0xff}), fault: "is not a valid encoding"},
		"a broken one of two": {message: wrap(one, []byte{0xff}), fails: true},
		"cut off":             {message: wrap(one)[:10], fails: true},
	} {
		r := eventRequest{encoder: &encoder{maxEventBytes: 1 << 20}, wrapped: true}
		err := r.read(c.message)
		switch {
		case (err != nil) != c.fails:
			t.Errorf("%s: %v", name, err)
		case c.fails:
		case r.item.id != c.id || (r.item.fault == nil) != (c.fault == ""):
			t.Errorf("%s: %+v", name, r.item)
		case c.fault != "" && !strings.Contains(r.item.fault.Error(), c.fault):
			t.Errorf("%s: %v, want %q", name, r.item.fault, c.fault)
		}
	}
}

// What a request's trace adds to an event identifies none: all events of the request would be one.
func TestTraceIdentifiesNoEvent(t *testing.T) {
	for _, attribute := range []string{traceParent, traceState} {
		config := DefaultConfig()
		config.DedupeAttribute = attribute
		if config.Validate() == nil {
			t.Errorf("%s may identify events", attribute)
		}
	}
}
