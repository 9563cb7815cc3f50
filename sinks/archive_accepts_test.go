package sinks

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/waybillhq/waybill/pipeline"
)

func ceTimestamp(at *timestamppb.Timestamp) *pb.CloudEventAttributeValue {
	return &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeTimestamp{CeTimestamp: at}}
}

// wireVarint and wireBytes are fields in a wire type that may not be theirs.
func wireVarint(field protowire.Number) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, field, protowire.VarintType), 1)
}

func wireBytes(field protowire.Number, content []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, field, protowire.BytesType), content)
}

// attributeWire is an event's attribute "a", with a value that is encoded already.
func attributeWire(value ...byte) []byte {
	return wireBytes(ceAttributes, append(wireBytes(1, []byte("a")), wireBytes(2, value)...))
}

// acceptedForms are encodings of events as a client may send them, and the attribute for
// which ingest refuses them: empty for those that are accepted.
func acceptedForms() map[string]struct {
	encoded []byte
	refused string
} {
	event := func(tail ...byte) []byte {
		return append(mustEncode(&pb.CloudEvent{Id: "i", Source: "/s", SpecVersion: "1.0", Type: "t"}), tail...)
	}
	attribute := func(name string, value *pb.CloudEventAttributeValue) []byte {
		return event(mustEncode(&pb.CloudEvent{Attributes: map[string]*pb.CloudEventAttributeValue{name: value}})...)
	}
	const least, most = -62135596800, 253402300799 // the years 1 to 9999
	type form = struct {
		encoded []byte
		refused string
	}
	return map[string]form{
		"plain":              {event(), ""},
		"first second":       {attribute("recordedtime", ceTimestamp(&timestamppb.Timestamp{Seconds: least})), ""},
		"last nanosecond":    {attribute("recordedtime", ceTimestamp(&timestamppb.Timestamp{Seconds: most, Nanos: 999999999})), ""},
		"empty timestamp":    {attribute("recordedtime", ceTimestamp(&timestamppb.Timestamp{})), ""},
		"before year 1":      {attribute("recordedtime", ceTimestamp(&timestamppb.Timestamp{Seconds: least - 1})), "recordedtime"},
		"after year 9999":    {attribute("recordedtime", ceTimestamp(&timestamppb.Timestamp{Seconds: most + 1})), "recordedtime"},
		"end of time":        {attribute("x", ceTimestamp(&timestamppb.Timestamp{Seconds: math.MaxInt64})), "x"},
		"start of time":      {attribute("x", ceTimestamp(&timestamppb.Timestamp{Seconds: math.MinInt64})), "x"},
		"nanoseconds over":   {attribute("x", ceTimestamp(&timestamppb.Timestamp{Nanos: math.MaxInt32})), "x"},
		"nanoseconds under":  {attribute("x", ceTimestamp(&timestamppb.Timestamp{Nanos: -1})), "x"},
		"timestamp as time":  {attribute("time", ceTimestamp(&timestamppb.Timestamp{Seconds: most + 1})), "time"},
		"bytes":              {attribute("raw", &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeBytes{CeBytes: []byte{0xff}}}), ""},
		"control characters": {attribute("x", ceString("\x00\n\u2028\x7f")), ""},
		"one of our names":   {attribute(ArchivePositionAttribute, ceString("x")), ""},
		"later field":        {event(wireBytes(100, []byte("x"))...), ""},
		"later value field":  {event(attributeWire(append(wireBytes(3, []byte("v")), wireVarint(100)...)...)...), ""},
		"later value":        {event(attributeWire(wireBytes(20, []byte("x"))...)...), "a"},
		"no value":           {event(attributeWire()...), "a"},
		"id as varint":       {event(wireVarint(ceID)...), "event"},
		"attribute varint":   {event(wireVarint(ceAttributes)...), "event"},
		"data as varint":     {event(wireVarint(ceProtoData)...), "event"},
		"string as varint":   {event(attributeWire(append(wireBytes(3, []byte("v")), wireVarint(3)...)...)...), "a"},
		"boolean as bytes":   {event(attributeWire(append(wireBytes(3, []byte("v")), wireBytes(1, []byte("x"))...)...)...), "a"},
		"stamp as varint":    {event(attributeWire(append(wireBytes(3, []byte("v")), wireVarint(7)...)...)...), "a"},
		"seconds as bytes":   {event(attributeWire(wireBytes(7, append([]byte{8, 5}, wireBytes(1, []byte("x"))...))...)...), "a"},
		"type URL as varint": {event(wireBytes(ceProtoData, append(wireBytes(1, []byte("u")), wireVarint(1)...))...), "data"},
		"entry with more":    {event(wireBytes(ceAttributes, append(attributeWire(wireBytes(3, []byte("v"))...)[2:], wireVarint(1)...))...), ""},
		"any data":           {event(mustEncode(&pb.CloudEvent{Data: &pb.CloudEvent_ProtoData{ProtoData: &anypb.Any{TypeUrl: "u", Value: []byte{0xff}}}})...), ""},
	}
}

// accept is what ingest makes of an encoding.
func accept(encoded []byte) (pipeline.Event, error) {
	ce := new(pb.CloudEvent)
	if err := proto.Unmarshal(encoded, ce); err != nil {
		return pipeline.Event{}, err
	}
	return pipeline.NewEvent(ce, pipeline.DefaultMaxEventBytes)
}

// checkArchives fails unless the archive takes the event for what ingest took it for.
func checkArchives(t *testing.T, accepted pipeline.Event) {
	t.Helper()
	var e lineEncoder
	line, err := e.appendLine(nil, accepted.Encoded, 1)
	if err != nil {
		t.Fatalf("ingest accepts what the archive refuses: %v", err)
	}
	var members struct{ ID, Source, Type string }
	mustNil(t, json.Unmarshal(line, &members))
	if members.ID != accepted.ID || members.Source != accepted.Source || members.Type != accepted.Type {
		t.Fatalf("the archive reads %+v, ingest accepted %q %q %q", members, accepted.ID, accepted.Source, accepted.Type)
	}
	ce := new(pb.CloudEvent)
	mustNil(t, proto.Unmarshal(accepted.Encoded, ce))
	checkStamps(t, ce, line)
}

// checkStamps compares the timestamps, of which a line has one form only.
func checkStamps(t *testing.T, ce *pb.CloudEvent, line []byte) {
	t.Helper()
	var members map[string]any
	mustNil(t, json.Unmarshal(line, &members))
	for name, value := range ce.Attributes {
		if stamp := value.GetCeTimestamp(); stamp != nil && !strings.HasPrefix(name, "datatypeurl") && !strings.HasPrefix(name, "waybillposition") {
			if want := stamp.AsTime().Format("2006-01-02T15:04:05.999999999Z07:00"); members[name] != want {
				t.Fatalf("%s is %v, want %v", name, members[name], want)
			}
		}
	}
}

// TestArchiveAccepts: what ingest accepts the archive can write, and the rest is refused
// under the attribute that is wrong.
func TestArchiveAccepts(t *testing.T) {
	for name, form := range acceptedForms() {
		t.Run(name, func(t *testing.T) {
			event, err := accept(form.encoded)
			if form.refused == "" {
				mustNil(t, err)
				checkArchives(t, event)
				return
			}
			wantError(t, err, form.refused+": ")
		})
	}
}

// FuzzArchiveAccepts: whatever bytes a client sends, what ingest accepts the archive can
// write.
func FuzzArchiveAccepts(f *testing.F) {
	for _, form := range acceptedForms() {
		f.Add(form.encoded)
	}
	f.Fuzz(func(t *testing.T, encoded []byte) {
		if event, err := accept(encoded); err == nil {
			checkArchives(t, event)
		}
	})
}
