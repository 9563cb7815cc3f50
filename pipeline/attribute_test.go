package pipeline

import (
	"errors"
	"strings"
	"testing"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func attributeString(s string) *pb.CloudEventAttributeValue {
	return &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeString{CeString: s}}
}

func attributeURI(s string) *pb.CloudEventAttributeValue {
	return &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeUri{CeUri: s}}
}

func attributeTime(seconds int64) *pb.CloudEventAttributeValue {
	return &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeTimestamp{
		CeTimestamp: &timestamppb.Timestamp{Seconds: seconds},
	}}
}

var attributeTrue = &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeBoolean{CeBoolean: true}}

func attributeURIRef(s string) *pb.CloudEventAttributeValue {
	return &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeUriRef{CeUriRef: s}}
}

// attributeCases are values of attributes, and whether an event with them is accepted.
var attributeCases = []struct {
	name  string
	value *pb.CloudEventAttributeValue
	ok    bool
}{
	{"time", attributeTime(1), true},
	{"time", attributeString("2026-01-02T03:04:05.123456789+02:00"), true},
	{"time", attributeTime(1 << 60), false},
	{"time", attributeString("today"), false},
	{"time", attributeTrue, false},
	{"recordedtime", attributeTime(1), true},
	{"recordedtime", attributeTime(253402300799), true},
	{"recordedtime", attributeTime(253402300800), false},
	{"recordedtime", attributeTime(-62135596801), false},
	{"recordedtime", attributeString("today"), true},
	{"dataschema", attributeURI("\xff"), false},
	{"datacontenttype", attributeString("application/protobuf"), true},
	{"datacontenttype", attributeString("text/plain; charset=utf-8"), true},
	{"datacontenttype", attributeString(""), false},
	{"datacontenttype", attributeString("a/b/c"), false},
	{"datacontenttype", attributeTrue, false},
	{"dataschema", attributeURI("https://example.com/s"), true},
	{"dataschema", attributeString("/platform/schema/v1"), true},
	{"dataschema", attributeURIRef("a/b"), true},
	{"dataschema", attributeURI(""), false},
	{"dataschema", attributeURI("%zz"), false},
	{"dataschema", attributeTrue, false},
	{"subject", attributeString("s"), true},
	{"subject", attributeString(""), false},
	{"subject", attributeTrue, false},
	{"emitter", attributeString(""), true},
	{"emitter", attributeString("\xff"), false},
	{"emitter", attributeURI("\xff"), false},
	{"emitter", attributeTrue, true},
}

func eventWithAttribute(name string, value *pb.CloudEventAttributeValue) *pb.CloudEvent {
	return &pb.CloudEvent{
		Id: "1", Source: "/s", Type: "t", SpecVersion: "1.0",
		Attributes: map[string]*pb.CloudEventAttributeValue{name: value},
	}
}

// sourceCases are sources, and whether an event with them is accepted.
var sourceCases = map[string]bool{
	"platform": true, "/a/b_c~d.e-f": true, "https://example.com/a?b=c#d": true, "urn:uuid:1": true,
	"a b/ü": true, "%zz": false, "1a:b": false, "http://[": false, "a\nb": false,
	strings.Repeat("s", MaxSourceBytes): true, strings.Repeat("s", MaxSourceBytes+1): false,
}

// TestValidateAttributes: an event is refused for an attribute that CloudEvents does not
// allow, under that attribute's name, and for none that existing emitters send.
func TestValidateAttributes(t *testing.T) {
	for _, c := range attributeCases {
		_, err := NewEvent(eventWithAttribute(c.name, c.value), DefaultMaxEventBytes)
		var fault *InvalidEventError
		if errors.As(err, &fault) == c.ok || (!c.ok && fault.Attribute != c.name) {
			t.Errorf("%s %v: error %v, want ok %v", c.name, c.value, err, c.ok)
		}
	}
}

func TestValidateSource(t *testing.T) {
	for source, ok := range sourceCases {
		ce := &pb.CloudEvent{Id: "1", Source: source, Type: "t", SpecVersion: "1.0"}
		_, err := NewEvent(ce, DefaultMaxEventBytes)
		var fault *InvalidEventError
		if errors.As(err, &fault) == ok || (!ok && fault.Attribute != "source") {
			t.Errorf("source %q: error %v, want ok %v", source, err, ok)
		}
	}
}
