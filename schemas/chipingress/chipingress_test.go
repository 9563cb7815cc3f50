package chipingress_test

import (
	"fmt"
	"testing"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/waybillhq/waybill/schemas/chipingress"
	"github.com/waybillhq/waybill/schemas/chipingress/chipcommon"
)

// TestWireContract holds the numbers and names that existing peers use.
func TestWireContract(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		message proto.Message
		fields  map[string]protoreflect.FieldNumber
	}{
		{&chipingress.CloudEventBatch{}, map[string]protoreflect.FieldNumber{"events": 1, "options": 2}},
		{&chipingress.PublishOptions{}, map[string]protoreflect.FieldNumber{"transaction_enabled": 1}},
		{&chipingress.PublishResponse{}, map[string]protoreflect.FieldNumber{"results": 1}},
		{&chipingress.PublishResult{}, map[string]protoreflect.FieldNumber{"event_id": 1, "error": 2}},
		{&chipingress.PublishError{}, map[string]protoreflect.FieldNumber{"error_code": 1, "reason": 2}},
		{&chipingress.PingResponse{}, map[string]protoreflect.FieldNumber{"message": 1}},
		{&chipingress.EmptyRequest{}, map[string]protoreflect.FieldNumber{}},
		{&chipingress.StreamEventsRequest{}, map[string]protoreflect.FieldNumber{"event": 1}},
		{&chipingress.StreamEventsResponse{}, map[string]protoreflect.FieldNumber{"eventId": 1, "status": 2}},
		{&chipingress.RegisterSchemaRequest{}, map[string]protoreflect.FieldNumber{"schemas": 1}},
		{&chipingress.RegisterSchemaResponse{}, map[string]protoreflect.FieldNumber{"registered": 1}},
		{&chipcommon.Schema{}, map[string]protoreflect.FieldNumber{"subject": 1, "path": 2, "format": 4, "schema": 5, "references": 6, "metadata": 7}},
		{&chipcommon.SchemaReference{}, map[string]protoreflect.FieldNumber{"name": 1, "subject": 2, "version": 3}},
		{&chipcommon.MetaData{}, map[string]protoreflect.FieldNumber{"stores": 1}},
		{&chipcommon.Store{}, map[string]protoreflect.FieldNumber{"index": 1, "partition": 2}},
		{&chipcommon.Path{}, map[string]protoreflect.FieldNumber{"path": 1, "type": 2}},
		{&chipcommon.RegisteredSchema{}, map[string]protoreflect.FieldNumber{"subject": 1, "version": 2}},
	} {
		fields := c.message.ProtoReflect().Descriptor().Fields()
		name := c.message.ProtoReflect().Descriptor().FullName()
		if fields.Len() != len(c.fields) {
			t.Errorf("%s has %d fields, want %d", name, fields.Len(), len(c.fields))
		}
		for field, number := range c.fields {
			if f := fields.ByName(protoreflect.Name(field)); f == nil || f.Number() != number {
				t.Errorf("%s.%s is %v, want number %d", name, field, f, number)
			}
		}
	}
}

func TestEnumsAreThoseOfExistingPeers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		enum protoreflect.Enum
		want map[int]protoreflect.Name
	}{
		{chipingress.PublishErrorCode(0), map[int]protoreflect.Name{
			0: "PUBLISH_ERROR_CODE_UNKNOWN", 1: "PUBLISH_ERROR_CODE_VALIDATION_FAILED", 2: "PUBLISH_ERROR_CODE_SCHEMA_MISSING",
			3: "PUBLISH_ERROR_CODE_ENCODE_ERROR", 4: "PUBLISH_ERROR_CODE_DOMAIN_MISCONFIGURATION",
		}},
		{chipcommon.SchemaType(0), map[int]protoreflect.Name{0: "PROTOBUF", 1: "AVRO", 2: "JSON"}},
		{chipcommon.PathType(0), map[int]protoreflect.Name{0: "S3", 1: "LOCAL", 2: "GITHUB", 3: "OTHER"}},
	} {
		values := c.enum.Descriptor().Values()
		if values.Len() != len(c.want) {
			t.Errorf("%s has %d values", c.enum.Descriptor().FullName(), values.Len())
		}
		for number, name := range c.want {
			if v := values.ByNumber(protoreflect.EnumNumber(number)); v == nil || v.Name() != name {
				t.Errorf("%s: %d is %v, want %s", c.enum.Descriptor().FullName(), number, v, name)
			}
		}
	}
}

func TestMethodsAreThoseOfExistingPeers(t *testing.T) {
	t.Parallel()
	service := chipingress.File_chip_ingress_proto.Services().ByName("ChipIngress")
	for method, signature := range map[protoreflect.Name]string{
		"Publish":        "io.cloudevents.v1.CloudEvent chipingress.pb.PublishResponse false",
		"PublishBatch":   "chipingress.pb.CloudEventBatch chipingress.pb.PublishResponse false",
		"Ping":           "chipingress.pb.EmptyRequest chipingress.pb.PingResponse false",
		"StreamEvents":   "chipingress.pb.StreamEventsRequest chipingress.pb.StreamEventsResponse true",
		"RegisterSchema": "chipingress.pb.RegisterSchemaRequest chipingress.pb.RegisterSchemaResponse false",
	} {
		m := service.Methods().ByName(method)
		if m == nil {
			t.Errorf("%s is missing", method)
			continue
		}
		streams := m.IsStreamingClient() && m.IsStreamingServer()
		if got := fmt.Sprintf("%s %s %v", m.Input().FullName(), m.Output().FullName(), streams); got != signature {
			t.Errorf("%s is %s, want %s", method, got, signature)
		}
	}
}

// TestCloudEventIsTheSDKs: reflection must find every import, and Go code must need no
// second type for an event.
func TestCloudEventIsTheSDKs(t *testing.T) {
	t.Parallel()
	file, err := protoregistry.GlobalFiles.FindFileByPath("cloudevent.proto")
	if err != nil || file != pb.File_cloudevent_proto {
		t.Fatalf("cloudevent.proto is %v, %v", file, err)
	}
	for _, f := range []protoreflect.FileDescriptor{chipingress.File_chip_ingress_proto, chipcommon.File_chipcommon_chip_common_proto} {
		if _, err := protodesc.NewFile(protodesc.ToFileDescriptorProto(f), protoregistry.GlobalFiles); err != nil {
			t.Errorf("%s: %v", f.Path(), err)
		}
	}
	var events []*pb.CloudEvent = (&chipingress.CloudEventBatch{}).GetEvents()
	if events != nil {
		t.Error("an empty batch has events")
	}
}
