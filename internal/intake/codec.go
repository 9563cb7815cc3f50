package intake

import (
	"encoding/binary"
	"errors"
	"io"

	grpcencoding "google.golang.org/grpc/encoding"
	protoencoding "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/waybillhq/waybill/schemas/chipingress"
)

// codec is grpc's for protobuf, but for events, which it turns into items without decoding
// them where that can be, and batches, which it reads event by event: put together and decoded
// all at once, a batch takes three times its size, and one of eight million empty events a
// gigabyte before anybody could count them.
type codec struct{ grpcencoding.CodecV2 }

func newCodec() codec { return codec{grpcencoding.GetCodecV2(protoencoding.Name)} }

// Unmarshal implements encoding.CodecV2. What is wrong with a batch is in it.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	switch request := v.(type) {
	case *batchRequest:
		reader := data.Reader()
		request.err = request.read(reader)
		return reader.Close()
	case *eventRequest:
		message := data.MaterializeToBuffer(mem.DefaultBufferPool())
		defer message.Free()
		return request.read(message.ReadOnlyData())
	}
	return c.CodecV2.Unmarshal(data, v)
}

// eventRequest is an io.cloudevents.v1.CloudEvent, or the chipingress.pb.StreamEventsRequest
// around one, that is turned into an item as it is read.
type eventRequest struct {
	encoder *encoder
	wrapped bool // in a StreamEventsRequest

	item item
}

func (r *eventRequest) read(message []byte) error {
	event, ok := message, true
	if r.wrapped {
		event, ok = onlyEvent(message)
	}
	if ok {
		r.item = r.encoder.protobuf(event)
		return nil
	}
	request := new(chipingress.StreamEventsRequest)
	if err := proto.Unmarshal(message, request); err != nil {
		return err
	}
	r.item = r.encoder.item(request.GetEvent(), nil)
	return nil
}

// onlyEvent returns the event of a StreamEventsRequest in which nothing else is.
func onlyEvent(message []byte) ([]byte, bool) {
	const eventField = 1
	number, kind, n := protowire.ConsumeTag(message)
	if n < 0 || number != eventField || kind != protowire.BytesType {
		return nil, false
	}
	event, m := protowire.ConsumeBytes(message[n:])
	return event, m == len(message)-n
}

// batchRequest is a chipingress.pb.CloudEventBatch that is turned into items as it is read.
type batchRequest struct {
	encoder *encoder
	limit   int // of events

	items   []item
	options *chipingress.PublishOptions
	err     error // errTooManyEvents, or why the batch cannot be read
}

// Fields of chipingress.pb.CloudEventBatch.
const (
	batchEventsField  = 1
	batchOptionsField = 2
)

// byteReader is what a batch is read from.
type byteReader interface {
	io.Reader
	io.ByteReader
	Remaining() int
	Discard(int) (int, error)
}

func (b *batchRequest) read(r byteReader) error {
	b.encoder.arena.expected = r.Remaining()
	var scratch []byte // of one event at a time; items keep none of it
	for r.Remaining() > 0 {
		tag, err := binary.ReadUvarint(r)
		if err != nil {
			return badBatch(err)
		}
		number, kind := protowire.DecodeTag(tag)
		if number < protowire.MinValidNumber || kind != protowire.BytesType {
			if err := skipField(r, number, kind); err != nil {
				return badBatch(err)
			}
			continue
		}
		size, err := binary.ReadUvarint(r)
		if err != nil || size > uint64(r.Remaining()) {
			return badBatch(io.ErrUnexpectedEOF)
		}
		switch number {
		case batchEventsField:
			if len(b.items) == b.limit {
				return errTooManyEvents
			}
			if scratch, err = readInto(scratch, r, int(size)); err == nil {
				b.items = append(b.items, b.encoder.protobuf(scratch))
			}
		case batchOptionsField:
			if scratch, err = readInto(scratch, r, int(size)); err == nil {
				b.options = new(chipingress.PublishOptions)
				err = proto.Unmarshal(scratch, b.options)
			}
		default:
			_, err = r.Discard(int(size))
		}
		if err != nil {
			return badBatch(err)
		}
	}
	return nil
}

// readInto reads size bytes into buf, or into a larger one.
func readInto(buf []byte, r io.Reader, size int) ([]byte, error) {
	if cap(buf) < size {
		buf = make([]byte, size)
	}
	buf = buf[:size]
	_, err := io.ReadFull(r, buf)
	return buf, err
}

// skipField passes over an unknown field that has no length. Groups are not of this format.
func skipField(r byteReader, number protowire.Number, kind protowire.Type) error {
	var err error
	switch {
	case number < protowire.MinValidNumber:
		err = errors.New("a field number is not valid")
	case kind == protowire.VarintType:
		_, err = binary.ReadUvarint(r)
	case kind == protowire.Fixed32Type:
		_, err = r.Discard(4)
	case kind == protowire.Fixed64Type:
		_, err = r.Discard(8)
	default:
		err = errors.New("a field has a type that is not valid")
	}
	return err
}
