package bench

import (
	"bytes"

	"google.golang.org/grpc/encoding"
	protoencoding "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// Fields of the messages that are read without decoding them.
const (
	eventsField   protowire.Number = 1 // CloudEventBatch
	resultsField  protowire.Number = 1 // PublishResponse
	eventIDField  protowire.Number = 1 // CloudEvent, PublishResult, StreamEventsResponse
	errorField    protowire.Number = 2 // PublishResult
	statusField   protowire.Number = 2 // StreamEventsResponse
	statusOfTaken                  = "OK"
)

// callCodec sends calls as they are, with one copy, and reads answers without decoding them:
// what the generator costs, the measured processes cannot have. Other messages go as they do
// without it.
type callCodec struct{ encoding.CodecV2 }

func newCallCodec() callCodec { return callCodec{encoding.GetCodecV2(protoencoding.Name)} }

// Marshal implements encoding.CodecV2.
func (c callCodec) Marshal(v any) (mem.BufferSlice, error) {
	switch v := v.(type) {
	case *call:
		pool := mem.DefaultBufferPool()
		buffer := pool.Get(len(v.message.wire))
		v.message.fill(*buffer, v.ledger, v.first)
		return mem.BufferSlice{mem.NewBuffer(buffer, pool)}, nil
	case *arrivals:
		return v.marshal(), nil
	}
	return c.CodecV2.Marshal(v)
}

// Unmarshal implements encoding.CodecV2.
func (c callCodec) Unmarshal(data mem.BufferSlice, v any) error {
	into, ok := v.(interface{ read(wire []byte) error })
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	whole := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer whole.Free()
	return into.read(whole.ReadOnlyData())
}

// eachBytes visits the length-delimited fields of a message, of one number.
func eachBytes(wire []byte, field protowire.Number, visit func(content []byte) error) error {
	for len(wire) > 0 {
		number, kind, n := protowire.ConsumeTag(wire)
		if n < 0 {
			return protowire.ParseError(n)
		}
		wire = wire[n:]
		if number == field && kind == protowire.BytesType {
			content, n := protowire.ConsumeBytes(wire)
			if n < 0 {
				return protowire.ParseError(n)
			}
			if err := visit(content); err != nil {
				return err
			}
			wire = wire[n:]
			continue
		}
		if n = protowire.ConsumeFieldValue(number, kind, wire); n < 0 {
			return protowire.ParseError(n)
		}
		wire = wire[n:]
	}
	return nil
}

// publishAnswer is a PublishResponse.
type publishAnswer struct {
	results int
	refused []int
}

func (a *publishAnswer) read(wire []byte) error {
	return eachBytes(wire, resultsField, func(result []byte) error {
		err := eachBytes(result, errorField, func([]byte) error {
			a.refused = append(a.refused, a.results)
			return nil
		})
		a.results++
		return err
	})
}

// streamAnswer is a StreamEventsResponse.
type streamAnswer struct {
	taken  bool
	status string // unless taken
}

func (a *streamAnswer) read(wire []byte) error {
	*a = streamAnswer{}
	return eachBytes(wire, statusField, func(content []byte) error {
		if a.taken = bytes.Equal(content, []byte(statusOfTaken)); !a.taken {
			a.status = string(content)
		}
		return nil
	})
}
