package intake

import (
	"runtime"
	"strings"
	"testing"
	"weak"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/grpc"

	"github.com/waybillhq/waybill/schemas/chipingress"
)

// heapInUse is what is reachable. Pools keep what is in them for two collections.
func heapInUse() int64 {
	var stats runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}

// A stream's encoder lives as long as its call. It keeps no event that it read, neither the newest nor
// one before that had more attributes.
func TestEncoderKeepsNothingOfWhatItRead(t *testing.T) {
	e := &encoder{maxEventBytes: 1 << 20}
	var read []weak.Pointer[byte]
	for attributes := 3; attributes >= 0; attributes-- {
		ce := validEvent("1")
		ce.Attributes = make(map[string]*pb.CloudEventAttributeValue)
		for i := range attributes {
			ce.Attributes[string(rune('a'+i))] = stringValue("v")
		}
		encoded := mustEncode(t, ce)
		if it, ok := e.kept(encoded); !ok {
			t.Fatalf("decoded: %+v", it)
		}
		read = append(read, weak.Make(&encoded[0]))
	}
	heapInUse()
	for i, w := range read {
		if w.Value() != nil {
			t.Errorf("event %d of %d is kept", i, len(read))
		}
	}
	runtime.KeepAlive(e)
}

// What a stream keeps between its events is charged.
func TestIdleStreamsKeepNothingOfTheirEvents(t *testing.T) {
	const streams, size = 8, 8 << 20
	s := mustRPCSite(t, nil, grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(32<<20)))
	ce := validEvent("too large")
	ce.Data = &pb.CloudEvent_BinaryData{BinaryData: make([]byte, size)}
	before := heapInUse()
	for range streams {
		stream, err := s.StreamEvents(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&chipingress.StreamEventsRequest{Event: ce}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		heapInUse() // else the next one has the same buffer
	}
	checkReleased(t, s.intake)
	if kept := heapInUse() - before; kept > size {
		t.Errorf("%d idle streams keep %d MiB, and nothing is charged", streams, kept>>20)
	}
}

// An answer that waits for its client is charged with the event's id, and keeps no more of the event.
func TestAnswersKeepTheirIDsOnly(t *testing.T) {
	const count = 2000
	ce := validEvent("1")
	ce.Source, ce.Type = "/"+strings.Repeat("s", 1000), strings.Repeat("t", 500)
	encoded := mustEncode(t, ce)
	e := &encoder{maxEventBytes: 1 << 20}
	ids := make([]string, 0, count)
	charged := int64(0)
	before := heapInUse()
	for range count {
		it := answerable(e.protobuf(encoded))
		ids = append(ids, it.id)
		charged += answerBytes(&it)
	}
	if kept := heapInUse() - before; kept > charged {
		t.Errorf("%d answers keep %d bytes, and %d are charged", count, kept, charged)
	}
	runtime.KeepAlive(ids)
	runtime.KeepAlive(e)
}
