package producer

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"

	"github.com/waybillhq/waybill/internal/cloudevent"
)

// AppendJSON appends the event in the CloudEvents JSON format. JSON data keeps its bytes.
func AppendJSON(dst []byte, ce *pb.CloudEvent) ([]byte, error) {
	members := map[string]any{
		"specversion": ce.GetSpecVersion(), "id": ce.GetId(), "source": ce.GetSource(), "type": ce.GetType(),
	}
	for name, value := range ce.GetAttributes() {
		members[name] = cloudevent.Value(value)
	}
	data := cloudevent.Data(ce)
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

func contentType(ce *pb.CloudEvent) string {
	return ce.GetAttributes()["datacontenttype"].GetCeString()
}

func isJSON(contentType string) bool {
	media, _, _ := strings.Cut(contentType, ";")
	media = strings.ToLower(strings.TrimSpace(media))
	return media == "application/json" || media == "text/json" || strings.HasSuffix(media, "+json")
}
