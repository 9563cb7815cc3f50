package waybilltest

import (
	"fmt"
	"math"
	"mime"
	"strconv"
	"strings"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/waybillhq/waybill/internal/cloudevent"
	"github.com/waybillhq/waybill/pipeline"
)

// Names of the optional attributes of CloudEvents 1.0.
const (
	subjectAttribute     = "subject"
	timeAttribute        = "time"
	contentTypeAttribute = "datacontenttype"
	schemaAttribute      = "dataschema"
)

// Event is a CloudEvent.
type Event struct {
	// ID identifies the event within its Source. Emit makes one up where it is empty.
	ID, Source, Type string
	// Subject, Time, DataContentType and DataSchema are optional; zero: the event has none.
	Subject                     string
	Time                        time.Time
	DataContentType, DataSchema string
	// Extensions are further attributes, by name. Values are string, bool, int32 (Emit takes int too), []byte and
	// time.Time. The archive keeps all but bool and int32 as strings.
	Extensions map[string]any
	Data       []byte

	// What Waybill adds, and Emit passes over:

	// Seqnum is the number of the event within its Source and Type, from 1.
	Seqnum int64
	// ReceivedAt is when the endpoint took the event first, and Deliveries how often it did: more than once
	// where an answer was lost. Zero in the archive.
	ReceivedAt time.Time
	Deliveries int
}

// String names the event for people.
func (e Event) String() string {
	text := fmt.Sprintf("%s %q of %s", e.Type, e.ID, e.Source)
	if e.Seqnum > 0 {
		text += fmt.Sprintf(" (seqnum %d)", e.Seqnum)
	}
	return text
}

// proto is the event as it is sent.
func (e Event) proto() (*pb.CloudEvent, error) {
	ce := &pb.CloudEvent{Id: e.ID, Source: e.Source, SpecVersion: "1.0", Type: e.Type, Attributes: map[string]*pb.CloudEventAttributeValue{}}
	for name, value := range e.Extensions {
		v, err := attributeValue(value)
		if err != nil {
			return nil, fmt.Errorf("event %s: extension %s: %w", e, name, err)
		}
		ce.Attributes[name] = v
	}
	for name, text := range map[string]string{subjectAttribute: e.Subject, contentTypeAttribute: e.DataContentType} {
		if text != "" {
			ce.Attributes[name] = &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeString{CeString: text}}
		}
	}
	if e.DataSchema != "" {
		ce.Attributes[schemaAttribute] = &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeUri{CeUri: e.DataSchema}}
	}
	if !e.Time.IsZero() {
		ce.Attributes[timeAttribute] = &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeTimestamp{CeTimestamp: timestamppb.New(e.Time)}}
	}
	switch {
	case e.Data == nil:
	case isText(e.DataContentType):
		ce.Data = &pb.CloudEvent_TextData{TextData: string(e.Data)}
	default:
		ce.Data = &pb.CloudEvent_BinaryData{BinaryData: e.Data}
	}
	return ce, nil
}

// isText tells the content types whose data is text.
func isText(contentType string) bool {
	media, _, err := mime.ParseMediaType(contentType)
	return err == nil && (strings.HasPrefix(media, "text/") || media == "application/json" || strings.HasSuffix(media, "+json"))
}

func attributeValue(value any) (*pb.CloudEventAttributeValue, error) {
	switch v := value.(type) {
	case string:
		return &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeString{CeString: v}}, nil
	case bool:
		return &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeBoolean{CeBoolean: v}}, nil
	case int32:
		return &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeInteger{CeInteger: v}}, nil
	case int:
		if v < math.MinInt32 || v > math.MaxInt32 {
			return nil, fmt.Errorf("%d; an integer of CloudEvents has 32 bits", v)
		}
		return &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeInteger{CeInteger: int32(v)}}, nil
	case []byte:
		return &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeBytes{CeBytes: v}}, nil
	case time.Time:
		return &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeTimestamp{CeTimestamp: timestamppb.New(v)}}, nil
	default:
		return nil, fmt.Errorf("a %T; want string, bool, int32, int, []byte or time.Time", value)
	}
}

// newEvent is the inverse of proto, of an event from anywhere.
func newEvent(ce *pb.CloudEvent) Event {
	e := Event{ID: ce.GetId(), Source: ce.GetSource(), Type: ce.GetType()}
	for name, value := range ce.GetAttributes() {
		v := cloudevent.Value(value)
		text, _ := v.(string)
		switch name {
		case subjectAttribute:
			e.Subject = text
		case contentTypeAttribute:
			e.DataContentType = text
		case schemaAttribute:
			e.DataSchema = text
		case timeAttribute:
			e.Time, _ = v.(time.Time)
			if at, err := time.Parse(time.RFC3339Nano, text); err == nil { // as the archive has it
				e.Time = at
			}
		case pipeline.SeqnumAttribute:
			e.Seqnum, _ = strconv.ParseInt(text, 10, 64) // of a stranger: 0
		default:
			if e.Extensions == nil {
				e.Extensions = map[string]any{}
			}
			e.Extensions[name] = v
		}
	}
	e.Data = cloudevent.Data(ce)
	if e.DataSchema == "" {
		e.DataSchema = ce.GetProtoData().GetTypeUrl()
	}
	return e
}
