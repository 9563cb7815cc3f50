package intake

import (
	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"

	"github.com/waybillhq/waybill/pipeline"
)

// ParseJSON reads one event in the CloudEvents JSON format and checks it as the HTTP face
// does. maxBytes bounds its encoding. The error says that raw is no JSON, or is a
// *pipeline.InvalidEventError that names the attribute. The event refers to raw.
func ParseJSON(raw []byte, maxBytes int) (*pb.CloudEvent, error) {
	if err := checkJSON(raw); err != nil {
		return nil, err
	}
	d := readStructured(raw)
	if d.fault != nil {
		return nil, d.fault
	}
	if _, err := pipeline.NewEvent(d.ce, maxBytes); err != nil {
		return nil, err
	}
	return d.ce, nil
}
