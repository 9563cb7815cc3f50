package producer

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
)

// AppendJSON appends the event in the CloudEvents JSON format. JSON data keeps its bytes.
func AppendJSON(dst []byte, ce *pb.CloudEvent) ([]byte, error) {
	members := map[string]any{
		"specversion": ce.GetSpecVersion(), "id": ce.GetId(), "source": ce.GetSource(), "type": ce.GetType(),
	}
	for name, value := range ce.GetAttributes() {
		members[name] = attributeValue(value)
	}
	data := dataBytes(ce)
	_, isText := ce.GetData().(*pb.CloudEvent_TextData)
	_, isProto := ce.GetData().(*pb.CloudEvent_ProtoData)
	asJSON := !isProto && isJSON(contentType(ce)) && json.Valid(data)
	switch {
	case asJSON || ce.GetData() == nil:
	case isText:
		members["data"] = string(data)
	default:
		members["data_base64"] = data
	}
	object, err := json.Marshal(members)
	if err != nil {
		return dst, fmt.Errorf("encode event %s: %w", ce.GetId(), err)
	}
	if !asJSON {
		return append(dst, object...), nil
	}
	// By hand: the encoder would change spaces and characters.
	dst = append(dst, object[:len(object)-1]...)
	dst = append(dst, `,"data":`...)
	return append(append(dst, data...), '}'), nil
}

// attributeValue is what encoding/json makes the value of an attribute of.
func attributeValue(value *pb.CloudEventAttributeValue) any {
	switch v := value.GetAttr().(type) {
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
		return v.CeTimestamp.AsTime().Format(time.RFC3339Nano)
	default:
		return value.GetCeString()
	}
}

func contentType(ce *pb.CloudEvent) string {
	return ce.GetAttributes()["datacontenttype"].GetCeString()
}

func isJSON(contentType string) bool {
	media, _, _ := strings.Cut(contentType, ";")
	media = strings.ToLower(strings.TrimSpace(media))
	return media == "application/json" || media == "text/json" || strings.HasSuffix(media, "+json")
}

// dataBytes are the bytes of the event's data, whatever form it has.
func dataBytes(ce *pb.CloudEvent) []byte {
	switch data := ce.GetData().(type) {
	case *pb.CloudEvent_TextData:
		return []byte(data.TextData)
	case *pb.CloudEvent_BinaryData:
		return data.BinaryData
	case *pb.CloudEvent_ProtoData:
		return data.ProtoData.GetValue()
	}
	return nil
}
