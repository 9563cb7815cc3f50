package cloudevent

import (
	"reflect"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func TestValues(t *testing.T) {
	at := time.Date(2026, 11, 30, 8, 0, 0, 5e8, time.UTC)
	for _, c := range []struct {
		value *pb.CloudEventAttributeValue
		want  any
		text  string
	}{
		{&pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeString{CeString: "a b"}}, "a b", "a b"},
		{&pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeBoolean{CeBoolean: true}}, true, "true"},
		{&pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeInteger{CeInteger: -7}}, int32(-7), "-7"},
		{&pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeBytes{CeBytes: []byte{0, 1}}}, []byte{0, 1}, "AAE="},
		{&pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeUri{CeUri: "urn:x"}}, "urn:x", "urn:x"},
		{&pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeUriRef{CeUriRef: "../x"}}, "../x", "../x"},
		{&pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeTimestamp{CeTimestamp: timestamppb.New(at)}}, at, "2026-11-30T08:00:00.5Z"},
		{&pb.CloudEventAttributeValue{}, nil, ""},
		{nil, nil, ""},
	} {
		if got := Value(c.value); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%v is %#v, want %#v", c.value, got, c.want)
		}
		if text := Text(c.value); text != c.text {
			t.Errorf("the text of %v is %q, want %q", c.value, text, c.text)
		}
	}
}

func TestData(t *testing.T) {
	for want, ce := range map[string]*pb.CloudEvent{
		"bytes": {Data: &pb.CloudEvent_BinaryData{BinaryData: []byte("bytes")}},
		"text":  {Data: &pb.CloudEvent_TextData{TextData: "text"}},
		"proto": {Data: &pb.CloudEvent_ProtoData{ProtoData: &anypb.Any{Value: []byte("proto")}}},
		"":      {},
	} {
		if got := Data(ce); string(got) != want || (got == nil) != (want == "") {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
