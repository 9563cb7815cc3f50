package intake

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/schemas/chipingress"
)

// TestMetrics: what is accepted counts by source and type, for the first few of them, and
// what is refused by reason.
func TestMetrics(t *testing.T) {
	reader := sdkmetric.NewManualReader()
	meter := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)).Meter("test")
	s := mustSite(t, func(c *Config) { c.Meter, c.MetricKeys = meter, 2 })
	send := func(typ string) {
		s.post(t, "", "ce-specversion", "1.0", "ce-id", "1", "ce-source", "/s", "ce-type", typ)
	}
	s.recorder.verdict = func(int) error { return pipeline.ErrUnavailable }
	send("new") // refused, it gets no place of its own
	s.recorder.verdict = func(int) error { return nil }
	send("a")
	send("b")
	send("c")
	send("a")
	s.post(t, "[{},"+eventJSON("x")+"]", "Content-Type", batchType)
	s.post(t, "{}")
	s.recorder.verdict = func(int) error { return pipeline.ErrUnavailable }
	send("a")

	got := collect(t, reader)
	for name, want := range map[string]int64{
		"waybill.ingest.events.accepted/s/a":                          2,
		"waybill.ingest.events.accepted/s/b":                          1,
		"waybill.ingest.events.accepted/other/other":                  1,
		"waybill.ingest.events.refused/unavailable/s/a":               1,
		"waybill.ingest.events.refused/unavailable/other/other":       1,
		"waybill.ingest.events.refused/invalid/other/other":           1,
		"waybill.ingest.events.refused/aborted/other/other":           1,
		"waybill.ingest.requests.refused/http/unsupported-media-type": 1,
		"waybill.ingest.accept.duration/http/accepted":                4,
		"waybill.ingest.accept.duration/http/unavailable":             2,
		"http.server.request.duration/POST/200/v1/events/http":        4,
		"http.server.request.duration/503/POST/503/v1/events/http":    2,
		"http.server.request.duration/POST/400/v1/events/http":        1,
		"http.server.request.duration/POST/415/v1/events/http":        1,
		"waybill.ingest.budget.limit":                                 s.intake.Budget().Size(),
	} {
		if got[name] != want {
			t.Errorf("%s is %d, want %d; all: %v", name, got[name], want, got)
		}
	}
}

// The whole time of each call is recorded by method and status, and streams too.
func TestCallsAreTimed(t *testing.T) {
	reader := sdkmetric.NewManualReader()
	meter := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)).Meter("test")
	s := mustRPCSite(t, func(c *Config) { c.Meter = meter })
	event := &pb.CloudEvent{Id: "1", Source: "/s", Type: "t", SpecVersion: "1.0"}
	if _, err := s.Publish(t.Context(), event); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Publish(t.Context(), &pb.CloudEvent{}); status.Code(err) != codes.InvalidArgument {
		t.Fatal(err)
	}
	stream, err := s.StreamEvents(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&chipingress.StreamEventsRequest{Event: event}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	s.recorder.verdict = func(int) error { return pipeline.ErrUnavailable }
	if _, err := s.Publish(t.Context(), event); status.Code(err) != codes.Unavailable {
		t.Fatal(err)
	}
	const name = "rpc.server.call.duration"
	want := map[string]int64{
		name + "/chipingress.pb.ChipIngress/Publish/OK/grpc":                      1,
		name + "/chipingress.pb.ChipIngress/Publish/InvalidArgument/grpc":         1,
		name + "/Unavailable/chipingress.pb.ChipIngress/Publish/Unavailable/grpc": 1,
		name + "/chipingress.pb.ChipIngress/StreamEvents/OK/grpc":                 1,
	}
	// The client has its answer a moment before the call is over.
	for deadline := time.Now().Add(patience); ; {
		got := collect(t, reader)
		maps.DeleteFunc(got, func(key string, _ int64) bool { return !strings.HasPrefix(key, name) })
		if maps.Equal(got, want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("got %v, want %v", got, want)
		}
		time.Sleep(time.Millisecond)
	}
}

// collect returns every sum, count and gauge under its name and attribute values.
func collect(t *testing.T, reader sdkmetric.Reader) map[string]int64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &all); err != nil {
		t.Fatal(err)
	}
	got := make(map[string]int64)
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, point := range data.DataPoints {
					got[m.Name+labels(point.Attributes)] += point.Value
				}
			case metricdata.Gauge[int64]:
				for _, point := range data.DataPoints {
					got[m.Name+labels(point.Attributes)] = point.Value
				}
			case metricdata.Histogram[float64]:
				for _, point := range data.DataPoints {
					got[m.Name+labels(point.Attributes)] = int64(point.Count)
				}
			}
		}
	}
	return got
}

func labels(set attribute.Set) string {
	text := ""
	for _, label := range set.ToSlice() {
		value := label.Value.String()
		if value[0] != '/' {
			value = "/" + value
		}
		text += fmt.Sprint(value)
	}
	return text
}
