package sinks

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/types/known/anypb"
)

const protobufContentType = "application/protobuf"

// Event makes an event of the line. It has the id, source, type, attributes and data of the one that
// was archived, and no position. JSON does not tell all kinds apart: attributes that were
// timestamps, URIs or bytes are strings, and data is an Any if it is protobuf, text if it is JSON or
// text, and bytes otherwise. The line that an archive writes of the result has the same members, but
// for data that was in base64 and need not be.
func (r Record) Event() (*pb.CloudEvent, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(r.Line, &members); err != nil {
		return nil, fmt.Errorf("archive lane %d, offset %d: the line is no archived event: %w", r.Lane, r.Offset, err)
	}
	d := lineDecoder{event: &pb.CloudEvent{Attributes: make(map[string]*pb.CloudEventAttributeValue, len(members))}}
	for name, value := range members {
		d.member(name, value)
	}
	d.setData()
	if d.err != nil {
		return nil, fmt.Errorf("archive lane %d, offset %d: %w", r.Lane, r.Offset, d.err)
	}
	return d.event, nil
}

// lineDecoder is the inverse of lineEncoder. It keeps the first error.
type lineDecoder struct {
	event        *pb.CloudEvent
	data, base64 json.RawMessage // nil: not there
	typeURL      string
	err          error
}

func (d *lineDecoder) member(name string, value json.RawMessage) {
	switch name {
	case "specversion":
		d.event.SpecVersion = d.text(name, value)
	case "id":
		d.event.Id = d.text(name, value)
	case "source":
		d.event.Source = d.text(name, value)
	case "type":
		d.event.Type = d.text(name, value)
	case ArchivePositionAttribute:
	case ArchiveTypeURLAttribute:
		d.typeURL = d.text(name, value)
	case "data":
		d.data = value
	case "data_base64":
		d.base64 = value
	default:
		d.attribute(name, value)
	}
}

func (d *lineDecoder) fail(name string, err error) {
	if d.err == nil {
		d.err = fmt.Errorf("the member %s: %w", name, err)
	}
}

func (d *lineDecoder) text(name string, value json.RawMessage) (text string) {
	if err := json.Unmarshal(value, &text); err != nil {
		d.fail(name, err)
	}
	return text
}

func (d *lineDecoder) attribute(name string, value json.RawMessage) {
	set := &pb.CloudEventAttributeValue{}
	switch value[0] {
	case '"':
		set.Attr = &pb.CloudEventAttributeValue_CeString{CeString: d.text(name, value)}
	case 't', 'f':
		set.Attr = &pb.CloudEventAttributeValue_CeBoolean{CeBoolean: value[0] == 't'}
	default:
		number, err := strconv.ParseInt(string(value), 10, 32)
		if err != nil {
			d.fail(name, err)
		}
		set.Attr = &pb.CloudEventAttributeValue_CeInteger{CeInteger: int32(number)}
	}
	d.event.Attributes[name] = set
}

func (d *lineDecoder) attributeText(name string) string {
	return d.event.Attributes[name].GetCeString()
}

// setData puts the data back to where an emitter puts it, as the CloudEvents SDK does: protobuf into
// an Any whose type is the dataschema.
func (d *lineDecoder) setData() {
	contentType := d.attributeText(contentTypeAttribute)
	var data []byte
	isText := false
	switch {
	case d.base64 != nil:
		var err error
		if data, err = base64.StdEncoding.DecodeString(d.text("data_base64", d.base64)); err != nil {
			d.fail("data_base64", err)
		}
	case d.data != nil && isJSONContent(contentType):
		data, isText = d.data, true
	case d.data != nil:
		data, isText = []byte(d.text("data", d.data)), true
	default:
		return
	}
	typeURL := d.typeURL
	if typeURL == "" && contentType == protobufContentType {
		typeURL = d.attributeText(dataSchemaAttribute)
	}
	switch {
	case typeURL != "" || contentType == protobufContentType:
		d.event.Data = &pb.CloudEvent_ProtoData{ProtoData: &anypb.Any{TypeUrl: typeURL, Value: data}}
	case isText:
		d.event.Data = &pb.CloudEvent_TextData{TextData: string(data)}
	default:
		d.event.Data = &pb.CloudEvent_BinaryData{BinaryData: data}
	}
}

// isJSONContent tells the content types whose data stands in a line as JSON.
func isJSONContent(contentType string) bool {
	e := lineEncoder{attributes: []eventAttribute{{name: []byte(contentTypeAttribute), text: []byte(contentType)}}}
	return e.contentType() == jsonContent
}
