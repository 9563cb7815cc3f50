package e2e

import (
	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/types/known/anypb"
)

// protoData is a body as existing emitters send it: an Any without a type.
func protoData(payload []byte) *pb.CloudEvent_ProtoData {
	return &pb.CloudEvent_ProtoData{ProtoData: &anypb.Any{Value: payload}}
}
