package sinks

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/waybillhq/waybill/pipeline"
)

// ingressEventsField is CloudEventBatch.events.
const ingressEventsField protowire.Number = 1

// ingressRequest is a CloudEventBatch whose events are encoded already: they go out as
// the bytes that were accepted.
type ingressRequest []pipeline.Item

// ingressCodec writes an ingressRequest without decoding its events, and reads
// responses as gRPC's own protobuf codec does.
type ingressCodec struct{ encoding.CodecV2 }

func newIngressCodec() ingressCodec { return ingressCodec{encoding.GetCodecV2(proto.Name)} }

// Marshal puts the events into one buffer of gRPC's pool. To copy them is cheaper than
// to refer to them: a reference costs two allocations, and most events are small.
func (c ingressCodec) Marshal(v any) (mem.BufferSlice, error) {
	request, ok := v.(ingressRequest)
	if !ok {
		return nil, fmt.Errorf("ingress sink: cannot encode a %T", v)
	}
	pool := mem.DefaultBufferPool()
	buffer := pool.Get(request.size())
	body := (*buffer)[:0]
	for _, item := range request {
		body = protowire.AppendTag(body, ingressEventsField, protowire.BytesType)
		body = protowire.AppendBytes(body, item.Encoded())
	}
	*buffer = body
	return mem.BufferSlice{mem.NewBuffer(buffer, pool)}, nil
}

func (r ingressRequest) size() int {
	total := 0
	for _, item := range r {
		total += ingressElementSize(item)
	}
	return total
}

// ingressElementSize is what an event adds to a request: tag, length, encoding.
func ingressElementSize(item pipeline.Item) int {
	return protowire.SizeTag(ingressEventsField) + protowire.SizeBytes(len(item.Encoded()))
}

// ingressSpan is the part [from, to) of the items of one Send.
type ingressSpan struct{ from, to int }

// splitIngress cuts items into requests within the limits, in one pass. An event that
// is over maxBytes on its own gets a request of its own.
func splitIngress(items []pipeline.Item, maxBytes, maxEvents int) []ingressSpan {
	var spans []ingressSpan
	from, bytes := 0, 0
	for i, item := range items {
		size := ingressElementSize(item)
		if i > from && (bytes+size > maxBytes || i-from == maxEvents) {
			spans = append(spans, ingressSpan{from, i})
			from, bytes = i, 0
		}
		bytes += size
	}
	if from < len(items) {
		spans = append(spans, ingressSpan{from, len(items)})
	}
	return spans
}

// ingressEventID reads CloudEvent.id out of an encoding. It is the first field, as
// whoever encodes writes fields in the order of their numbers; an encoding without one
// has the empty id.
func ingressEventID(encoded []byte) []byte {
	const idField = 1
	for len(encoded) > 0 {
		number, kind, n := protowire.ConsumeTag(encoded)
		if n < 0 {
			return nil
		}
		encoded = encoded[n:]
		if number == idField && kind == protowire.BytesType {
			id, _ := protowire.ConsumeBytes(encoded)
			return id
		}
		if n = protowire.ConsumeFieldValue(number, kind, encoded); n < 0 {
			return nil
		}
		encoded = encoded[n:]
	}
	return nil
}
