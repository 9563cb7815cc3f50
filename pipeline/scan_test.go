package pipeline

import (
	"slices"
	"testing"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

// field is the encoding of a field with a length, also of what protobuf itself would refuse.
func field(number protowire.Number, content string) string {
	return string(protowire.AppendString(protowire.AppendTag(nil, number, protowire.BytesType), content))
}

func varint(number protowire.Number, v uint64) string {
	return string(protowire.AppendVarint(protowire.AppendTag(nil, number, protowire.VarintType), v))
}

func attributeEntry(name, value string) string {
	return field(attributesField, field(entryKeyField, name)+field(entryValueField, value))
}

// agrees holds a scan against NewEvent: whatever the scan vouches for is an event that NewEvent
// accepts, and whose encoding says the same to a reader.
func agrees(t interface{ Fatalf(string, ...any) }, encoded []byte, identifyBy string) (vouched bool) {
	var scan Scan
	if !scan.Read(encoded) {
		return false
	}
	got, ok := scan.Event(identifyBy)
	if !ok {
		return false
	}
	decoded, want := new(pb.CloudEvent), new(pb.CloudEvent)
	if err := proto.Unmarshal(encoded, decoded); err != nil {
		t.Fatalf("the scan vouches for %x, which cannot be decoded: %v", encoded, err)
	}
	e, err := NewEvent(proto.Clone(decoded).(*pb.CloudEvent), len(encoded)+16)
	if err != nil {
		t.Fatalf("the scan vouches for %x, which is refused: %v", encoded, err)
	}
	if identifyBy != "" {
		e.IdentifyBy(decoded, identifyBy)
	}
	if err := proto.Unmarshal(e.Encoded, want); err != nil || !proto.Equal(decoded, want) {
		t.Fatalf("the scan keeps %x, and NewEvent makes %x of it: %v", encoded, e.Encoded, err)
	}
	if len(decoded.ProtoReflect().GetUnknown()) > 0 {
		t.Fatalf("the scan vouches for %x, which has unknown fields", encoded)
	}
	e.Encoded = nil
	if got.ID != e.ID || got.Source != e.Source || got.Type != e.Type || got.Fingerprint != e.Fingerprint {
		t.Fatalf("the scan makes %+v of %x, NewEvent %+v", got, encoded, e)
	}
	for name := range decoded.Attributes {
		if !scan.Has(name) {
			t.Fatalf("the scan of %x has no %s", encoded, name)
		}
	}
	return true
}

// TestScanOfUsualEvents: the scan vouches for what producers send, or it is of no use, and for
// nothing that is refused.
func TestScanOfUsualEvents(t *testing.T) {
	check := func(ce *pb.CloudEvent, want bool) {
		t.Helper()
		encoded, err := proto.MarshalOptions{AllowPartial: true}.Marshal(ce)
		if err != nil {
			if want {
				t.Errorf("encode %v: %v", ce, err)
			}
			return // no encoding: TestScanOfFields has those
		}
		if got := agrees(t, encoded, ""); got != want {
			t.Errorf("%v: vouched for %v, want %v", ce, got, want)
		}
	}
	for _, c := range attributeCases {
		check(eventWithAttribute(c.name, c.value), c.ok)
	}
	for source, ok := range sourceCases {
		check(&pb.CloudEvent{Id: "1", Source: source, Type: "t", SpecVersion: "1.0"}, ok)
	}
	for _, version := range []string{"", "1.1"} {
		check(&pb.CloudEvent{Id: "1", Source: "/s", Type: "t", SpecVersion: version}, false)
	}
	check(&pb.CloudEvent{
		Id: "1", Source: "/s", Type: "t", SpecVersion: "1.0", Data: &pb.CloudEvent_TextData{TextData: "é"},
	}, true)
	check(eventWithAttribute(SeqnumAttribute, attributeString("1")), false) // it is to be renamed
	check(eventWithAttribute("seq_num", attributeString("1")), false)
	check(eventWithAttribute("id", attributeString("1")), false)
}

// eventParts are fields of events, right and wrong ones.
var eventParts = []string{
	field(idField, "1"), field(sourceField, "/s"), field(typeField, "t"), field(specVersionField, "1.0"),
	field(idField, ""), field(idField, "\xff"), field(idField, "a\x00b"), field(sourceField, "%zz"), field(typeField, "é"),
	field(specVersionField, "2"), varint(idField, 1), varint(attributesField, 1), varint(binaryDataField, 1),
	field(binaryDataField, "\xff\x00"), field(textDataField, "text"), field(textDataField, "\xff"),
	field(protoDataField, ""), field(protoDataField, field(anyTypeURLField, "u")+field(anyValueField, "\xff")),
	field(protoDataField, field(anyTypeURLField, "\xff")), field(protoDataField, varint(anyValueField, 1)),
	field(protoDataField, field(anyTypeURLField, "u")+field(anyTypeURLField, "v")), field(protoDataField, field(3, "new")),
	field(9, "of a later version"), varint(20, 1), "\x0b\x0c", "\x0a", "\x0a\xff", "\x00",
	attributeEntry("a", field(ceStringField, "text")), attributeEntry("a", field(ceStringField, "")), attributeEntry("b", varint(ceBooleanField, 1)),
	attributeEntry("b", varint(ceBooleanField, 2)), attributeEntry("b", varint(ceStringField, 2)), attributeEntry("", field(ceStringField, "x")),
	attributeEntry("c", varint(ceIntegerField, 1<<40)), attributeEntry("c", varint(ceIntegerField, 1<<64-5)), attributeEntry("c", field(ceIntegerField, "5")),
	attributeEntry("d", field(ceBytesField, "\xff")), attributeEntry("e", field(ceURIField, "\xff")), attributeEntry("e", field(ceURIRefField, "r")),
	attributeEntry("f", ""), attributeEntry("f", field(ceStringField, "1")+field(ceStringField, "2")), attributeEntry("f", field(9, "new")),
	attributeEntry("time", field(ceTimestampField, varint(secondsField, 5)+varint(nanosField, 7))), attributeEntry("time", field(ceStringField, "today")),
	attributeEntry("g", field(ceTimestampField, varint(nanosField, 1_000_000_000))), attributeEntry("g", field(ceTimestampField, varint(secondsField, 1<<60))),
	attributeEntry("g", field(ceTimestampField, varint(nanosField, 1<<32))), attributeEntry("g", field(ceTimestampField, field(secondsField, "5"))),
	attributeEntry("g", field(ceTimestampField, varint(secondsField, 1)+varint(secondsField, 2))), attributeEntry("g", field(ceTimestampField, "")),
	field(attributesField, field(entryValueField, field(ceStringField, "v"))+field(entryKeyField, "late")),
	field(attributesField, field(entryKeyField, "bare")), field(attributesField, ""),
	field(attributesField, field(entryKeyField, "twice")+field(entryKeyField, "k")+field(entryValueField, field(ceStringField, "v"))),
	field(attributesField, field(entryKeyField, "more")+field(entryValueField, field(ceStringField, "v"))+field(entryValueField, field(ceBytesField, "v"))),
	attributeEntry("datacontenttype", field(ceStringField, "application/json")), attributeEntry("datacontenttype", field(ceStringField, "a/b/c")),
	attributeEntry("dataschema", field(ceURIField, "https://example.com/s")), attributeEntry("dataschema", field(ceURIField, "")),
	attributeEntry("subject", field(ceStringField, "")), attributeEntry(SeqnumAttribute, field(ceStringField, "1")), attributeEntry("source", field(ceStringField, "1")),
	"\x8a\x00\x01x", // the tag of field 1 in two bytes
	"\x0a\x81\x00x", // a length in two bytes
}

// TestScanOfFields holds the scan against NewEvent on events of any fields, in any order, with
// bytes changed.
func TestScanOfFields(t *testing.T) {
	vouched := 0
	check(t, 20_000, func(t *rapid.T) {
		parts := append([]string{}, eventParts[:4]...)
		more := rapid.SliceOfN(rapid.SampledFrom(eventParts), 0, 3).Draw(t, "more")
		parts = rapid.Permutation(append(parts, more...)).Draw(t, "parts")
		if oneIn(t, 4, "leave one out") {
			parts = parts[1:]
		}
		var encoded []byte
		for _, p := range parts {
			encoded = append(encoded, p...)
		}
		if oneIn(t, 4, "change a byte") && len(encoded) > 0 {
			i := rapid.IntRange(0, len(encoded)-1).Draw(t, "at")
			encoded[i] = rapid.Byte().Draw(t, "to")
		}
		if agrees(t, encoded, rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "identify by")) {
			vouched++
		}
	})
	if vouched == 0 {
		t.Error("the scan vouched for no event, so nothing was compared")
	}
}

// TestScanOfManyAttributes: an event with more attributes than a scan compares is decoded.
func TestScanOfManyAttributes(t *testing.T) {
	encoded := []byte(eventParts[0] + eventParts[1] + eventParts[2] + eventParts[3])
	for i := range maxScannedAttributes {
		encoded = AppendText(encoded, string(rune('a'+i/26))+string(rune('a'+i%26)), "v")
	}
	if !agrees(t, encoded, "") {
		t.Errorf("%d attributes: the scan does not vouch for them", maxScannedAttributes)
	}
	if agrees(t, AppendText(encoded, "onemore", "v"), "") {
		t.Errorf("%d attributes: the scan vouches for what it has not compared", maxScannedAttributes+1)
	}
}

func TestAppendText(t *testing.T) {
	for _, text := range []string{"", "1", string(slices.Repeat([]byte{'x'}, 200)), string(slices.Repeat([]byte{'y'}, 20_000))} {
		encoded := AppendText([]byte(field(idField, "1")), "name", text)
		ce := new(pb.CloudEvent)
		if err := proto.Unmarshal(encoded, ce); err != nil || ce.Id != "1" || ce.Attributes["name"].GetCeString() != text {
			t.Errorf("%d bytes: %v, %v", len(text), ce, err)
		}
		if got := len(encoded) - len(field(idField, "1")); got != TextSize("name", text) {
			t.Errorf("%d bytes: appended %d, TextSize says %d", len(text), got, TextSize("name", text))
		}
	}
}

// A number may be written in more bytes than it takes. Protobuf's readers in Go and Java take all
// ten of a tag or a length, those in C++ and what is built on them five, so an event with such a number
// is encoded anew.
func TestScanOfLongNumbers(t *testing.T) {
	event := eventParts[0] + eventParts[1] + eventParts[2] + eventParts[3]
	for name, encoded := range map[string]string{
		"a tag":         event + "\xb2\x80\x80\x80\x80\x00\x01x",
		"a length":      event + "\x32\x81\x80\x80\x80\x80\x00x",
		"an entry":      event + field(attributesField, "\x0a\x81\x80\x80\x80\x80\x00a"+field(entryValueField, field(ceStringField, "v"))),
		"a value":       event + attributeEntry("a", "\x1a\x81\x80\x80\x80\x80\x00v"),
		"a value's tag": event + attributeEntry("a", "\x9a\x80\x80\x80\x80\x00\x01v"),
		"of an Any":     event + field(protoDataField, "\x0a\x81\x80\x80\x80\x80\x00u"),
		"of a time":     event + attributeEntry("time", field(ceTimestampField, "\x88\x80\x80\x80\x80\x00\x05")),
	} {
		if err := proto.Unmarshal([]byte(encoded), new(pb.CloudEvent)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if agrees(t, []byte(encoded), "") {
			t.Errorf("%s: it is kept as it is", name)
		}
	}
}
