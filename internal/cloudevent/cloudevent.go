// Package cloudevent reads what CloudEvents hold in their protobuf form, in whichever of its ways it is in there.
package cloudevent

import (
	"encoding/base64"
	"strconv"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
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

// Text is the canonical text of a value, as CloudEvents defines it, the same for an integer in JSON and in a header: bytes
// are in base64, and a timestamp is as of RFC 3339. It is empty where there is no value.
func Text(value *pb.CloudEventAttributeValue) string {
	switch v := Value(value).(type) {
	case string:
		return v
	case bool:
		return strconv.FormatBool(v)
	case int32:
		return strconv.Itoa(int(v))
	case []byte:
		return base64.StdEncoding.EncodeToString(v)
	case time.Time:
		return v.Format(time.RFC3339Nano)
	}
	return ""
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
