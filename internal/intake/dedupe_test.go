package intake

import (
	"strings"
	"testing"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
)

// The configured attribute says, on every way in, which events are the same one.
func TestDedupeAttribute(t *testing.T) {
	s := mustSite(t, func(c *Config) { c.DedupeAttribute = "idempotencykey" })
	s.post(t, `{"n":1}`, "ce-specversion", "1.0", "ce-id", "1", "ce-source", "/shop", "ce-type", "order.placed",
		"ce-idempotencykey", "7", "Content-Type", "application/json").accepted(t, 1)
	with := func(id, key string) string {
		return strings.Replace(eventJSON(id), `"data"`, `"idempotencykey":`+key+`,"data"`, 1)
	}
	s.post(t, with("2", `7`), "Content-Type", structuredType).accepted(t, 1)
	s.post(t, "["+with("3", `"7"`)+","+with("4", `"8"`)+","+eventJSON("7")+"]", "Content-Type", batchType).accepted(t, 3)
	e := NewGRPC(s.intake).encoder(t.Context())
	over := e.item(&pb.CloudEvent{
		Id: "5", Source: "/shop", Type: "order.placed", SpecVersion: "1.0",
		Attributes: map[string]*pb.CloudEventAttributeValue{"idempotencykey": {Attr: &pb.CloudEventAttributeValue_CeInteger{CeInteger: 7}}},
	}, nil)
	var events []string // the fingerprints
	for _, unit := range s.recorder.units {
		for _, e := range unit {
			events = append(events, string(e.Fingerprint[:]))
		}
	}
	events = append(events, string(over.event.Fingerprint[:]))
	for i, same := range []bool{true, true, true, false, false, true} {
		if (events[i] == events[0]) != same {
			t.Errorf("event %d is the first one again: %v, want %v", i+1, !same, same)
		}
	}
}

func TestDedupeAttributeMustBeAnExtension(t *testing.T) {
	for _, name := range []string{"id", "source", "data", "seqnum", "idempotency-key", "Key"} {
		c := DefaultConfig()
		c.DedupeAttribute = name
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "dedupe attribute") {
			t.Errorf("%q: %v", name, err)
		}
	}
}
