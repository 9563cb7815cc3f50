// Package roundtrip sends made-up events to ingests and finds out whether each sink got
// every one of them, once, in order and unchanged.
package roundtrip

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Plan says which events are sent. Events of one plan are always the same.
type Plan struct {
	// Run is part of every source and id, so that the events of different runs on one
	// system are told apart and each run's keys begin at seqnum 1: lower-case letters,
	// digits and dashes.
	Run string
	// Seed of everything that looks random.
	Seed uint64
	// Events is their number.
	Events int
	// Sources and Types make Sources × Types keys.
	Sources, Types int
	// MinBytes and MaxBytes bound the data. Small events are more frequent.
	MinBytes, MaxBytes int
}

// DefaultPlan is n events of 24 keys with 100 bytes to 20 KB of data.
func DefaultPlan(run string, n int) Plan {
	return Plan{Run: run, Seed: 1, Events: n, Sources: 6, Types: 4, MinBytes: 100, MaxBytes: 20 << 10}
}

// Validate names the first setting that cannot work.
func (p Plan) Validate() error {
	switch {
	case p.Run == "" || strings.Trim(p.Run, "abcdefghijklmnopqrstuvwxyz0123456789-") != "":
		return fmt.Errorf("run: %q; want lower-case letters, digits and dashes", p.Run)
	case p.Events < 1 || p.Events > math.MaxInt32:
		return fmt.Errorf("events: %d; want 1 to %d", p.Events, math.MaxInt32)
	case p.Sources < 1 || p.Types < 1:
		return errors.New("sources and types: want at least 1 each")
	case p.MinBytes < minData || p.MaxBytes < p.MinBytes:
		return fmt.Errorf("data: %d to %d bytes; want at least %d and the lower one first", p.MinBytes, p.MaxBytes, minData)
	}
	return nil
}

// minData is the size of the smallest JSON data with its number in it.
const minData = 64

func (p Plan) source(i int) string { return fmt.Sprintf("/roundtrip/%s/%d", p.Run, i) }

func (p Plan) sourcePrefix() string { return "/roundtrip/" + p.Run + "/" }

func (p Plan) typ(i int) string { return fmt.Sprintf("roundtrip.type%d", i) }

// keyOf returns the key of the event at index.
func (p Plan) keyOf(index int) (source, typ string) {
	r := p.random(index)
	return p.source(r.IntN(p.Sources)), p.typ(r.IntN(p.Types))
}

func (p Plan) random(index int) *rand.Rand { return rand.New(rand.NewPCG(p.Seed, uint64(index))) }

func (p Plan) id(index int) string { return p.Run + "-" + strconv.Itoa(index) }

// indexOf is the inverse of id.
func (p Plan) indexOf(id string) (int, bool) {
	digits, ok := strings.CutPrefix(id, p.Run+"-")
	if !ok {
		return 0, false
	}
	index, err := strconv.Atoi(digits)
	return index, err == nil && index >= 0 && index < p.Events && p.id(index) == id
}

// Event makes the event at an index from 0.
func (p Plan) Event(index int) *pb.CloudEvent {
	r := p.random(index)
	ce := &pb.CloudEvent{
		Source: p.source(r.IntN(p.Sources)), Type: p.typ(r.IntN(p.Types)), Id: p.id(index), SpecVersion: "1.0",
		Attributes: map[string]*pb.CloudEventAttributeValue{
			"subject": text("event " + strconv.Itoa(index) + " of " + p.Run),
			// Not now, so that events of one plan are the same in every run.
			"time": {Attr: &pb.CloudEventAttributeValue_CeTimestamp{
				CeTimestamp: timestamppb.New(time.Unix(1_700_000_000+int64(index), 123_000_000)),
			}},
		},
	}
	// Each power of two is as frequent as the next.
	span := math.Log2(float64(p.MaxBytes)) - math.Log2(float64(p.MinBytes))
	size := int(float64(p.MinBytes) * math.Exp2(r.Float64()*span))
	setData(ce, r, index, min(size, p.MaxBytes))
	return ce
}

func text(s string) *pb.CloudEventAttributeValue {
	return &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeString{CeString: s}}
}

// setData gives an event JSON, text, bytes or a protobuf message.
func setData(ce *pb.CloudEvent, r *rand.Rand, index, size int) {
	var contentType string
	switch r.IntN(4) {
	case 0:
		contentType = "text/plain"
		ce.Data = &pb.CloudEvent_TextData{TextData: string(letters(r, size))}
	case 1:
		contentType = "application/octet-stream"
		ce.Data = &pb.CloudEvent_BinaryData{BinaryData: noise(r, size)}
	case 2:
		contentType = "application/protobuf"
		ce.Data = &pb.CloudEvent_ProtoData{ProtoData: &anypb.Any{Value: noise(r, size)}}
	default:
		contentType = "application/json"
		ce.Data = &pb.CloudEvent_BinaryData{BinaryData: document(r, index, size)}
	}
	ce.Attributes["datacontenttype"] = text(contentType)
}

// document is JSON whose bytes a careless reader would change: a large number, spaces,
// escapes and characters that some encoders escape.
func document(r *rand.Rand, index, size int) []byte {
	doc := fmt.Appendf(nil, `{"n": %d, "big":9007199254740993, "e":"\u00e9<&>é", "text":"`, index)
	doc = append(doc, letters(r, max(0, size-len(doc)-2))...)
	return append(doc, `"}`...)
}

func letters(r *rand.Rand, n int) []byte {
	const alphabet = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"
	out := make([]byte, n)
	for i := 0; i < n; {
		for bits, left := r.Uint64(), 10; left > 0 && i < n; left, bits = left-1, bits>>6 {
			out[i] = alphabet[bits&63]
			i++
		}
	}
	return out
}

func noise(r *rand.Rand, n int) []byte {
	out := make([]byte, n)
	for i := 0; i < n; {
		for bits, left := r.Uint64(), 8; left > 0 && i < n; left, bits = left-1, bits>>8 {
			out[i] = byte(bits)
			i++
		}
	}
	return out
}

// checksum is the Castagnoli CRC-32 of data.
func checksum(data []byte) uint32 { return crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)) }

// lineData are the bytes of the data of an event in structured JSON.
func lineData(line []byte) ([]byte, error) {
	var event struct {
		Data   json.RawMessage `json:"data"`
		Base64 []byte          `json:"data_base64"`
		Media  string          `json:"datacontenttype"`
	}
	if err := json.Unmarshal(line, &event); err != nil {
		return nil, fmt.Errorf("read the data of an archived event: %w", err)
	}
	if event.Data == nil {
		return event.Base64, nil
	}
	if event.Media == "application/json" {
		return event.Data, nil
	}
	var s string
	if err := json.Unmarshal(event.Data, &s); err != nil {
		return nil, fmt.Errorf("read the data of an archived event: %w", err)
	}
	return []byte(s), nil
}
