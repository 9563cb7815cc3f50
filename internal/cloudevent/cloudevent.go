// Package cloudevent reads what CloudEvents hold in their protobuf form, in whichever of its ways it is in there.
package cloudevent

import (
	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/cloudevents/sdk-go/v2/types"
)

// Value is the value of an attribute in Go: a string, bool, int32, []byte or time.Time, nil where there is none. A URI
// is a string, and so is a URI reference.
func Value(value *pb.CloudEventAttributeValue) any {
	switch v := value.GetAttr().(type) {
	case *pb.CloudEventAttributeValue_CeString:
		return v.CeString
	case *pb.CloudEventAttributeValue_CeBoolean:
		return v.CeBoolean
	case *pb.CloudEventAttributeValue_CeInteger:
		return v.CeInteger
	case *pb.CloudEventAttributeValue_CeBytes:
		return v.CeBytes
	case *pb.CloudEventAttributeValue_CeUri:
		return v.CeUri
	case *pb.CloudEventAttributeValue_CeUriRef:
		return v.CeUriRef
	case *pb.CloudEventAttributeValue_CeTimestamp:
		return v.CeTimestamp.AsTime()
	default:
		return nil
	}
}

// Text is the canonical text of a value, as CloudEvents defines it: bytes are in base64, and a timestamp is as of RFC 3339.
// It is empty where there is no value.
func Text(value *pb.CloudEventAttributeValue) string {
	text, err := types.Format(Value(value))
	if err != nil { // it has none
		return ""
	}
	return text
}

// Data is the data of an event; nil where it has none.
func Data(ce *pb.CloudEvent) []byte {
	switch data := ce.GetData().(type) {
	case *pb.CloudEvent_BinaryData:
		return data.BinaryData
	case *pb.CloudEvent_TextData:
		return []byte(data.TextData)
	case *pb.CloudEvent_ProtoData:
		return data.ProtoData.GetValue()
	default:
		return nil
	}
}
