package bench

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"strconv"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/waybillhq/waybill/pipeline"
)

// Events are of keySources sources at most, each with as many types as the keys need.
const keySources = 20

// messageBytes bounds the memory of one load's prepared calls, unless its keys need more.
const messageBytes = 64 << 20

// content says what the events of a load are like.
type content struct {
	bytes   int // of data
	perCall int // events
	keys    int
	mix     bool    // bodies and keys as a web site has them, instead
	invalid float64 // share of events that ingest must refuse
}

// message is an encoded call: what goes over the wire but for the ids.
type message struct {
	wire []byte
	ids  []int // where each event's id is in wire
	bad  []int // indexes of the events that must be refused

	event pipeline.CloudEvent // instead of wire, for an emitter; without an id
}

// event is one event before it is put into a call.
type event struct {
	source, typ string
	data        []byte
	encoded     []byte // as io.cloudevents.v1.CloudEvent
	bad         bool   // must be refused
}

// idAt is where the id is in the encoding of an event: behind a tag and a length.
const idAt = 2

// deal makes the events of enough calls that each key is in one of them, with random data.
func (c content) deal(run string) ([][]event, error) {
	calls := max((c.keys+c.perCall-1)/c.perCall, min(64, messageBytes/(c.perCall*(c.bytes+200))), 1)
	r := rand.New(rand.NewPCG(uint64(c.bytes), uint64(c.keys))) // the same in every run
	noise := noiseOf(r, max(4*c.bytes, 1<<20))
	order := r.Perm(c.keys)
	out := make([][]event, calls)
	for i := range out {
		out[i] = make([]event, c.perCall)
		for j := range out[i] {
			var err error
			if c.mix {
				out[i][j], err = mixEvent(r, run)
			} else {
				key, from := order[(i*c.perCall+j)%c.keys], r.IntN(len(noise)-c.bytes)
				out[i][j], err = newEvent(run, key, noise[from:from+c.bytes], r.Float64() < c.invalid)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// noiseOf makes random letters and digits.
func noiseOf(r *rand.Rand, n int) []byte {
	noise := make([]byte, n)
	for i := range noise {
		noise[i] = "abcdefghijklmnopqrstuvwxyz0123456789"[r.IntN(36)]
	}
	return noise
}

// newEvent makes an event of text. A bad one has no type.
func newEvent(run string, key int, data []byte, bad bool) (event, error) {
	typ := "bench.type" + strconv.Itoa(key/keySources)
	if bad {
		typ = ""
	}
	e, err := encodeAs("/bench/"+run+"/"+strconv.Itoa(key%keySources), typ, data, "")
	e.bad = bad
	return e, err
}

// encodeAs makes an event of text, or of bytes with a content type.
func encodeAs(source, typ string, data []byte, contentType string) (event, error) {
	e := event{source: source, typ: typ, data: data}
	ce := &pb.CloudEvent{Id: string(make([]byte, eventIDBytes)), Source: source, SpecVersion: "1.0", Type: typ}
	if contentType == "" {
		ce.Data = &pb.CloudEvent_TextData{TextData: string(data)}
	} else {
		ce.Data = &pb.CloudEvent_BinaryData{BinaryData: data}
		ce.Attributes = map[string]*pb.CloudEventAttributeValue{
			"datacontenttype": {Attr: &pb.CloudEventAttributeValue_CeString{CeString: contentType}},
		}
	}
	var err error
	if e.encoded, err = (proto.MarshalOptions{Deterministic: true}).Marshal(ce); err != nil {
		return event{}, fmt.Errorf("encode an event: %w", err)
	}
	return e, nil
}

// encode turns the events of a call into what goes over the wire.
type encode func(events []event) message

// encodeBatch is a CloudEventBatch.
func encodeBatch(events []event) message {
	var t message
	for i, e := range events {
		if e.bad {
			t.bad = append(t.bad, i)
		}
		t.wire = protowire.AppendTag(t.wire, 1, protowire.BytesType)
		t.wire = protowire.AppendVarint(t.wire, uint64(len(e.encoded)))
		t.ids = append(t.ids, len(t.wire)+idAt)
		t.wire = append(t.wire, e.encoded...)
	}
	return t
}

// encodeEvent is a CloudEvent alone.
func encodeEvent(events []event) message {
	return message{wire: events[0].encoded, ids: []int{idAt}}
}

// encodeStream is a StreamEventsRequest, whose only field has the number of a batch's.
func encodeStream(events []event) message { return encodeBatch(events[:1]) }

// encodeHTTP is a request of binary mode to a host.
func encodeHTTP(target *url.URL) encode {
	return func(events []event) message {
		e := events[0]
		head := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n"+
			"Ce-Specversion: 1.0\r\nCe-Source: %s\r\nCe-Type: %s\r\nCe-Id: ", target.RequestURI(), target.Host, len(e.data), e.source, e.typ)
		t := message{wire: []byte(head), ids: []int{len(head)}}
		t.wire = append(append(t.wire, make([]byte, eventIDBytes)...), "\r\n\r\n"...)
		t.wire = append(t.wire, e.data...)
		return t
	}
}

// fill writes a call into dst, which is as long as its message.
func (t message) fill(dst []byte, l *ledger, first int64) {
	copy(dst, t.wire)
	for i, at := range t.ids {
		l.writeID(dst[at:at+eventIDBytes], first+int64(i))
	}
}
