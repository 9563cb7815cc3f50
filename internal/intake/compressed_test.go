package intake

import (
	"errors"
	"io"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip" // whoever imports it has every server of the process inflate what comes
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/waybillhq/waybill/schemas/chipingress"
)

// A compressed message is refused: it is charged as it comes, within the first window not at all, and
// takes a thousand times that in memory. A package that is linked for something else, such as the
// exporter of spans, is enough to have grpc inflate it.
func TestCompressedMessagesAreRefused(t *testing.T) {
	s := mustRPCSite(t, nil)
	compressed := grpc.UseCompressor(gzip.Name)
	_, one := s.Publish(t.Context(), validEvent("one"), compressed)
	_, batch := s.PublishBatch(t.Context(), batchOf(validEvent("two")), compressed)
	stream, err := s.StreamEvents(t.Context(), compressed)
	if err != nil {
		t.Fatal(err)
	}
	// EOF says that the stream has ended already, and Recv says how.
	if err := stream.Send(&chipingress.StreamEventsRequest{Event: validEvent("three")}); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	_, streamed := stream.Recv()
	for call, err := range map[string]error{"Publish": one, "PublishBatch": batch, "StreamEvents": streamed} {
		if status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: %v", call, err)
		}
	}
	if s.recorder.count() != 0 {
		t.Error("something was submitted")
	}
	// It is not a call that brings events, but its message may be as large as theirs.
	large := &healthpb.HealthCheckRequest{Service: string(make([]byte, 1<<20))}
	if _, err := healthpb.NewHealthClient(s.conn).Check(t.Context(), large, compressed); status.Code(err) == codes.NotFound || err == nil {
		t.Errorf("a health check was inflated: %v", err)
	}
}
