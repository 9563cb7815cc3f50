package main

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
)

const (
	// eventsOfCall events just below the limit of one are a call just below its own.
	eventsOfCall = 16
	dataBytes    = 1<<20 - 1<<10
	callBytes    = 16 << 20
)

// shared is the data of all events of all producers.
var shared = []byte(strings.Repeat("waybill ", dataBytes/8))

// call is a body in pieces, most of which all producers share.
type call [][]byte

func (c call) size() int {
	n := 0
	for _, piece := range c {
		n += len(piece)
	}
	return n
}

// protobufCall is a batch of eventsOfCall events as protobuf.
func protobufCall(source, id string) call {
	var c call
	for i := range eventsOfCall {
		head, err := proto.Marshal(&pb.CloudEvent{
			Id: fmt.Sprintf("%s.%d", id, i), Source: source, SpecVersion: "1.0", Type: "flood",
		})
		if err != nil {
			panic(err) // of constant fields
		}
		const binaryDataField = 6
		head = protowire.AppendTag(head, binaryDataField, protowire.BytesType)
		head = protowire.AppendVarint(head, uint64(len(shared)))
		prefix := protowire.AppendTag(nil, 1, protowire.BytesType)
		prefix = protowire.AppendVarint(prefix, uint64(len(head)+len(shared)))
		c = append(c, append(prefix, head...), shared)
	}
	return c
}

// jsonCall is the same as JSON.
func jsonCall(source, id string) call {
	c := call{[]byte("[")}
	for i := range eventsOfCall {
		comma := ","
		if i == 0 {
			comma = ""
		}
		c = append(c, fmt.Appendf(nil, `%s{"specversion":"1.0","id":"%s.%d","source":"%s","type":"flood","datacontenttype":"text/plain","data":"`,
			comma, id, i, source), shared, []byte(`"}`))
	}
	return append(c, []byte("]"))
}
