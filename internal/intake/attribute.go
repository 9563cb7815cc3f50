package intake

import (
	"mime"
	"strings"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/waybillhq/waybill/pipeline"
)

// Attributes that this package treats apart.
const (
	attrContentType = "datacontenttype"
	attrDataSchema  = "dataschema"
	attrTime        = "time"
	memberData      = "data"
	memberBase64    = "data_base64"
)

// draft is an event while its attributes are read. It keeps the first fault and goes on,
// so that the event's id is known when the fault is told.
type draft struct {
	ce    *pb.CloudEvent
	fault *pipeline.InvalidEventError
}

func newDraft() *draft {
	return &draft{ce: &pb.CloudEvent{Attributes: make(map[string]*pb.CloudEventAttributeValue, 8)}}
}

func (d *draft) fail(attribute, reason string) {
	if attribute == "" {
		attribute, reason = "attributes", "an attribute has an empty name"
	}
	if d.fault == nil {
		d.fault = faultOf(attribute, reason)
	}
}

// field returns where a required attribute is kept, or nil for any other.
func (d *draft) field(name string) *string {
	switch name {
	case "id":
		return &d.ce.Id
	case "source":
		return &d.ce.Source
	case "type":
		return &d.ce.Type
	case "specversion":
		return &d.ce.SpecVersion
	}
	return nil
}

// setText sets an attribute from its text, in the type that CloudEvents gives it.
func (d *draft) setText(name, text string) {
	if field := d.field(name); field != nil {
		if *field != "" {
			d.fail(name, "is there twice")
			return
		}
		*field = text
		return
	}
	switch name {
	case attrTime:
		d.setTime(text)
	case attrDataSchema:
		d.set(name, &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeUri{CeUri: text}})
	default:
		d.set(name, stringValue(text))
	}
}

func (d *draft) setTime(text string) {
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		d.fail(attrTime, "is not an RFC 3339 timestamp such as 2006-01-02T15:04:05Z")
		return
	}
	d.set(attrTime, &pb.CloudEventAttributeValue{
		Attr: &pb.CloudEventAttributeValue_CeTimestamp{CeTimestamp: timestamppb.New(t)},
	})
}

func (d *draft) set(name string, value *pb.CloudEventAttributeValue) {
	if _, has := d.ce.Attributes[name]; has {
		d.fail(name, "is there twice")
		return
	}
	d.ce.Attributes[name] = value
}

func (d *draft) contentType() string { return d.ce.Attributes[attrContentType].GetCeString() }

// setData sets the event's data. Protobuf data goes into an Any under the schema's name,
// as the CloudEvents SDK and existing emitters have it; all else goes in as bytes: the
// SDK encodes text_data once more when the content type is JSON.
func (d *draft) setData(data []byte) {
	if mediaType(d.contentType()) == "application/protobuf" {
		d.ce.Data = &pb.CloudEvent_ProtoData{ProtoData: &anypb.Any{
			TypeUrl: d.ce.Attributes[attrDataSchema].GetCeUri(), Value: data,
		}}
		return
	}
	d.ce.Data = &pb.CloudEvent_BinaryData{BinaryData: data}
}

// mediaType returns the lower-case type/subtype of a content type.
func mediaType(contentType string) string {
	if !strings.ContainsAny(contentType, "; ") {
		return strings.ToLower(contentType)
	}
	media, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return ""
	}
	return media
}

func isJSON(media string) bool {
	return media == "application/json" || media == "text/json" || strings.HasSuffix(media, "+json")
}
