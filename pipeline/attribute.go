package pipeline

import (
	"mime"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// validateKnown checks a value, and applies what CloudEvents says of the optional
// attributes it defines, as strictly as the CloudEvents SDK does, so that what a client made
// with it is accepted.
func validateKnown(name string, value *pb.CloudEventAttributeValue) error {
	if err := validateValue(name, value); err != nil {
		return err
	}
	switch name {
	case "time":
		return validateTime(value)
	case "datacontenttype":
		return validateContentType(value)
	case "dataschema":
		return validateSchema(value)
	case "subject":
		if text, ok := value.Attr.(*pb.CloudEventAttributeValue_CeString); !ok || text.CeString == "" {
			return invalid(name, "must be a string that is not empty, or left out")
		}
	}
	return nil
}

// validateValue refuses, under any name, what has no form in every encoding that a sink
// writes: a timestamp that RFC 3339 cannot say, and text that protobuf would refuse.
func validateValue(name string, value *pb.CloudEventAttributeValue) error {
	if err := validateFields(name, value); err != nil {
		return err
	}
	var text string
	switch v := value.Attr.(type) {
	case *pb.CloudEventAttributeValue_CeTimestamp:
		if !v.CeTimestamp.IsValid() {
			return invalid(name, "is not a timestamp of the years 1 to 9999; give it one of them or leave the attribute out")
		}
		return validateFields(name, v.CeTimestamp)
	case *pb.CloudEventAttributeValue_CeString:
		text = v.CeString
	case *pb.CloudEventAttributeValue_CeUri:
		text = v.CeUri
	case *pb.CloudEventAttributeValue_CeUriRef:
		text = v.CeUriRef
	}
	if !utf8.ValidString(text) {
		return invalid(name, "is not valid UTF-8")
	}
	return nil
}

// validateEncoding refuses an event of which its readers could disagree on what it holds.
func validateEncoding(ce *pb.CloudEvent) error {
	if err := validateFields("event", ce); err != nil {
		return err
	}
	if data, ok := ce.Data.(*pb.CloudEvent_ProtoData); ok && data.ProtoData != nil {
		return validateFields("data", data.ProtoData)
	}
	return nil
}

// validateFields refuses a field of the message that came in another wire type than its
// definition has. Protobuf keeps such a field beside the right one, as it keeps those of
// later versions, and not every reader passes over it.
func validateFields(name string, message proto.Message) error {
	reflected := message.ProtoReflect()
	for rest := reflected.GetUnknown(); len(rest) > 0; {
		number, kind, n := protowire.ConsumeField(rest)
		if n < 0 {
			return invalid(name, "is not valid protobuf: %v", protowire.ParseError(n))
		}
		if field := reflected.Descriptor().Fields().ByNumber(number); field != nil {
			return invalid(name, "has the protobuf field %s in the wrong wire type (%d); encode it as its definition says",
				field.Name(), kind)
		}
		rest = rest[n:]
	}
	return nil
}

func validateTime(value *pb.CloudEventAttributeValue) error {
	switch v := value.Attr.(type) {
	case *pb.CloudEventAttributeValue_CeTimestamp:
		return nil // validateValue has seen to it
	case *pb.CloudEventAttributeValue_CeString:
		if _, err := time.Parse(time.RFC3339Nano, v.CeString); err == nil {
			return nil
		}
	}
	return invalid("time", "is not a timestamp of the years 1 to 9999 as of RFC 3339")
}

func validateContentType(value *pb.CloudEventAttributeValue) error {
	text, ok := value.Attr.(*pb.CloudEventAttributeValue_CeString)
	if !ok {
		return invalid("datacontenttype", "must be a string")
	}
	if !isMediaType(text.CeString) {
		return invalid("datacontenttype", "is not a media type as of RFC 2046, such as application/json")
	}
	return nil
}

// isMediaType reports whether text is a media type as of RFC 2046.
func isMediaType(text string) bool {
	if text == "application/json" || text == "application/protobuf" {
		return true // the usual ones, without the cost of parsing
	}
	_, _, err := mime.ParseMediaType(text)
	return err == nil
}

func validateSchema(value *pb.CloudEventAttributeValue) error {
	var text string
	switch v := value.Attr.(type) {
	case *pb.CloudEventAttributeValue_CeUri:
		text = v.CeUri
	case *pb.CloudEventAttributeValue_CeUriRef:
		text = v.CeUriRef
	case *pb.CloudEventAttributeValue_CeString:
		text = v.CeString
	}
	if text == "" || !isURIReference(text) {
		return invalid("dataschema", "must be a URI, or left out")
	}
	return nil
}

// isURIReference reports whether s can be read as a URI reference. Most sources are plain
// paths, which need no parsing.
func isURIReference(s string) bool {
	if strings.IndexFunc(s, notPlain) < 0 {
		return true
	}
	_, err := url.Parse(s)
	return err == nil
}

// notPlain is true for characters that mean something in a URI, beside the slash.
func notPlain(c rune) bool {
	return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') &&
		c != '/' && c != '-' && c != '.' && c != '_' && c != '~'
}
