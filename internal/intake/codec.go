package intake

import (
	"errors"

	grpcencoding "google.golang.org/grpc/encoding"
	protoencoding "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/waybillhq/waybill/schemas/chipingress"
)

// codec is grpc's for protobuf, but for batches, which it leaves encoded: decoded all at
// once, eight million empty events would take a gigabyte before anybody could count them.
type codec struct{ grpcencoding.CodecV2 }

func newCodec() codec { return codec{grpcencoding.GetCodecV2(protoencoding.Name)} }

// encodedBatch is a chipingress.pb.CloudEventBatch as it came in.
type encodedBatch struct{ body []byte }

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if batch, ok := v.(*encodedBatch); ok {
		batch.body = data.Materialize()
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}

// Fields of chipingress.pb.CloudEventBatch.
const batchEventsField = 1

// split returns the encodings of the batch's events, and its other fields. The error is
// errTooManyEvents, or says why the batch cannot be read.
func (b *encodedBatch) split(limit int) (events [][]byte, rest *chipingress.CloudEventBatch, err error) {
	events, err = splitProtobufBatch(b.body, limit)
	if err != nil {
		return nil, nil, err
	}
	var others []byte
	for body := b.body; len(body) > 0; {
		number, kind, n := protowire.ConsumeTag(body)
		size := n + protowire.ConsumeFieldValue(number, kind, body[n:]) // it was read before
		if number != batchEventsField {
			others = append(others, body[:size]...)
		}
		body = body[size:]
	}
	rest = new(chipingress.CloudEventBatch)
	if err := proto.Unmarshal(others, rest); err != nil {
		return nil, nil, errors.New("the options of the batch cannot be read")
	}
	return events, rest, nil
}
