package waybilltest

import (
	"errors"
	"fmt"
	"testing"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/google/uuid"
)

// Emit sends events to ingest, by gRPC in one call, and returns once they are committed. The test fails if they are not
// all accepted.
func (w *Waybill) Emit(t testing.TB, events ...Event) {
	t.Helper()
	if len(events) == 0 {
		return
	}
	encoded := make([]*pb.CloudEvent, len(events))
	for i, e := range events {
		var err error
		if encoded[i], err = e.proto(); err != nil {
			t.Fatalf("waybilltest: emit: %v", err)
		}
		if e.ID == "" {
			encoded[i].Id = uuid.NewString()
		}
	}
	var errs []error
	for i, err := range w.sender.Send(t.Context(), encoded) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", newEvent(encoded[i]), err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatalf("waybilltest: emit: %v", err)
	}
}
