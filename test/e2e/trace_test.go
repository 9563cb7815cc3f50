package e2e

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/internal/collector"
	"github.com/waybillhq/waybill/internal/devrun"
	"github.com/waybillhq/waybill/internal/jaeger"
	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/schemas/chipingress"
)

// traced is a system whose processes send all their spans to spans.
type traced struct {
	*system
	spans    *collector.Recent
	queryURL string // of Jaeger's query API, with the same spans
	client   chipingress.ChipIngressClient
}

func mustTrace(t *testing.T) *traced {
	t.Helper()
	spans := collector.NewRecent(100_000)
	receiver, err := collector.Listen("127.0.0.1:0", spans.Add)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := receiver.Close(); err != nil {
			t.Error(err)
		}
	})
	query := httptest.NewServer(jaeger.Handler(spans))
	t.Cleanup(query.Close)
	env := append(receiver.Env(), "OTEL_TRACES_SAMPLER_ARG=1", "OTEL_BSP_SCHEDULE_DELAY=200", "OTEL_BSP_MAX_QUEUE_SIZE=65536")
	s := mustStart(t, func(c *devrun.Config) { c.Env = append(os.Environ(), env...) })
	conn, err := grpc.NewClient(s.GRPC[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &traced{s, spans, query.URL, chipingress.NewChipIngressClient(conn)}
}

// mustShow waits until `waybill trace` prints lines that match.
func (s *traced) mustShow(t *testing.T, id string, lines ...string) {
	t.Helper()
	var out string
	defer func() {
		if t.Failed() {
			fmt.Fprintf(t.Output(), "waybill trace %s:\n%s\n", id, out)
		}
	}()
	for _, line := range lines {
		eventually(t, patience, "a line matches "+line, func() bool {
			if regexp.MustCompile("(?m)^" + line).MatchString(out) {
				return true
			}
			out, _ = s.waybill(t, "trace", id, "--query-url", s.queryURL) // it says why it fails
			return false
		})
	}
}

// traceID, parentID and traceparent are of the nth event of a kind.
func traceID(kind, n int) string  { return fmt.Sprintf("%016x%016x", kind, n+1) }
func parentID(kind, n int) string { return fmt.Sprintf("%08x%08x", kind, n+1) }

func traceparent(kind, n int, flags string) string {
	return "00-" + traceID(kind, n) + "-" + parentID(kind, n) + "-" + flags
}

// tracedEvent is an event, with extensions as name and value.
func tracedEvent(id, typ string, extensions ...string) *pb.CloudEvent {
	e := &pb.CloudEvent{Id: id, Source: "/traced", SpecVersion: "1.0", Type: typ, Attributes: map[string]*pb.CloudEventAttributeValue{}}
	for i := 0; i < len(extensions); i += 2 {
		e.Attributes[extensions[i]] = &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeString{CeString: extensions[i+1]}}
	}
	return e
}

func (s *traced) mustPublish(ctx context.Context, t *testing.T, events ...*pb.CloudEvent) {
	t.Helper()
	var err error
	if len(events) == 1 {
		_, err = s.client.Publish(ctx, events[0])
	} else {
		_, err = s.client.PublishBatch(ctx, &chipingress.CloudEventBatch{Events: events})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// names counts spans by name.
func names(spans []collector.Span) map[string]int {
	out := map[string]int{}
	for _, s := range spans {
		out[s.Name]++
	}
	return out
}

// mustGet returns the spans of a trace once they are as many of each name as wanted.
func (s *traced) mustGet(t *testing.T, trace string, want map[string]int) []collector.Span {
	t.Helper()
	var got []collector.Span
	defer func() {
		if t.Failed() {
			fmt.Fprintf(t.Output(), "trace %s has %v\n", trace, names(got))
		}
	}()
	eventually(t, patience, fmt.Sprintf("trace %s has %v", trace, want), func() bool {
		got = s.spans.Trace(trace)
		return maps.Equal(names(got), want)
	})
	return got
}

// only returns the one span of a name.
func only(t *testing.T, spans []collector.Span, name string) collector.Span {
	t.Helper()
	var found []collector.Span
	for _, s := range spans {
		if s.Name == name {
			found = append(found, s)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d spans %q in %v, want 1", len(found), name, names(spans))
	}
	return found[0]
}

// whole is the trace of an event that both sinks took at once.
var whole = map[string]int{
	"accept events": 1, "commit events": 1, "publish EVENTS": 1,
	"process ingress": 1, "send ingress": 1, "settle ingress": 1, "process archive": 1, "send archive": 1, "settle archive": 1,
}

// mustHang checks that a span hangs under another one, is not before it, and is of a process.
func mustHang(t *testing.T, child, parent collector.Span, service string) {
	t.Helper()
	if child.Parent != parent.ID || child.TraceID != parent.TraceID {
		t.Errorf("%s hangs under %q, want %s, which is %q", child.Name, child.Parent, parent.Name, parent.ID)
	}
	if child.Start.Before(parent.Start) || child.End.Before(child.Start) {
		t.Errorf("%s is from %v to %v, and %s from %v", child.Name, child.Start, child.End, parent.Name, parent.Start)
	}
	if child.Service != "waybill-"+service {
		t.Errorf("%s is of %s, want waybill-%s", child.Name, child.Service, service)
	}
}

// mustBeWhole checks the graph of whole.
func mustBeWhole(t *testing.T, spans []collector.Span, parent string) {
	t.Helper()
	accept := only(t, spans, "accept events")
	if accept.Parent != parent || accept.Service != "waybill-ingest" {
		t.Errorf("the acceptance hangs under %q, want %q; of %s", accept.Parent, parent, accept.Service)
	}
	mustHang(t, only(t, spans, "commit events"), accept, "ingest")
	publish := only(t, spans, "publish EVENTS")
	mustHang(t, publish, accept, "ingest")
	for _, sink := range []string{"ingress", "archive"} {
		process := only(t, spans, "process "+sink)
		mustHang(t, process, publish, "forwarder")
		mustHang(t, only(t, spans, "send "+sink), process, "forwarder")
		mustHang(t, only(t, spans, "settle "+sink), process, "janitor")
	}
}

func mustHave(t *testing.T, spans []collector.Span, attribute, want string) {
	t.Helper()
	for _, s := range spans {
		if got := s.Attributes[attribute]; got != want {
			t.Errorf("%s: %s is %q, want %q", s.Name, attribute, got, want)
		}
	}
}

func TestTraces(t *testing.T) {
	s := mustTrace(t)
	t.Run("one event alone", func(t *testing.T) {
		s.mustPublish(t.Context(), t, tracedEvent("alone", "alone", "traceparent", traceparent(1, 0, "01"), "correlationid", "order-7"))
		spans := s.mustGet(t, traceID(1, 0), whole)
		mustBeWhole(t, spans, parentID(1, 0))
		ofEvent := slices.DeleteFunc(spans, func(s collector.Span) bool { return strings.HasPrefix(s.Name, "settle") })
		mustHave(t, ofEvent, "cloudevents.event_id", "alone")
		mustHave(t, ofEvent, "cloudevents.event_source", "/traced")
		mustHave(t, ofEvent, "messaging.message.conversation_id", "order-7")
		s.mustShow(t, "order-7", "event alone, source /traced, type alone, correlation id order-7$", "trace "+traceID(1, 0)+": 9 spans in ",
			"accept events +ingest-1 ", "  commit events +ingest-1 ", "  publish EVENTS +ingest-1 ", "    process ingress +forwarder-1 ", "      send ingress +forwarder-1 ",
			"      settle ingress +janitor-1 ", "to ingress: delivered after .*, settled after ", "to archive: delivered after .*, settled after ", "  gather .* %")
	})
	t.Run("the trace of a request", func(t *testing.T) {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", traceparent(2, 0, "01"))
		s.mustPublish(ctx, t, tracedEvent("header", "header"))
		spans := s.mustGet(t, traceID(2, 0), whole)
		mustBeWhole(t, spans, parentID(2, 0))
		mustHave(t, []collector.Span{only(t, spans, "process ingress")}, "messaging.message.conversation_id", "header")
	})
	t.Run("the trace of an HTTP request", func(t *testing.T) {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.HTTP[0]+"/v1/events", strings.NewReader("data"))
		if err != nil {
			t.Fatal(err)
		}
		for name, value := range map[string]string{
			"Content-Type": "text/plain", "Ce-Specversion": "1.0", "Ce-Id": "http", "Ce-Source": "/traced", "Ce-Type": "http",
			"traceparent": traceparent(6, 0, "01"),
		} {
			request.Header.Set(name, value)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		spans := s.mustGet(t, traceID(6, 0), whole)
		mustBeWhole(t, spans, parentID(6, 0))
		mustHave(t, []collector.Span{only(t, spans, "accept events")}, "waybill.front", "http")
	})
	t.Run("over a stream, without a trace", func(t *testing.T) {
		stream, err := s.client.StreamEvents(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&chipingress.StreamEventsRequest{Event: tracedEvent("own", "own")}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		var trace string
		eventually(t, patience, "it is traced", func() bool {
			for _, span := range s.spans.Spans() {
				if span.Attributes["cloudevents.event_id"] == "own" {
					trace = span.TraceID
				}
			}
			return trace != ""
		})
		mustBeWhole(t, s.mustGet(t, trace, whole), "")
	})
	t.Run("a batch of 300 with mixed sampling", func(t *testing.T) { mustTraceBatch(t, s) })
	t.Run("a dead letter", func(t *testing.T) { mustTraceDeadLetter(t, s) })
	t.Run("a retransmit", func(t *testing.T) { mustTraceRetransmit(t, s) })
}

// A third of a batch is sampled by its producer.
func mustTraceBatch(t *testing.T, s *traced) {
	const kind, count = 3, 300
	var events []*pb.CloudEvent
	var sampled []int
	for i := range count {
		flags := "00"
		if i%3 == 0 {
			flags, sampled = "01", append(sampled, i)
		}
		events = append(events, tracedEvent(fmt.Sprintf("batch-%d", i), "batch", "traceparent", traceparent(kind, i, flags)))
	}
	s.mustPublish(t.Context(), t, events...)
	published := map[string]bool{}
	for _, i := range sampled {
		spans := s.mustGet(t, traceID(kind, i), whole)
		mustBeWhole(t, spans, parentID(kind, i))
		mustHave(t, []collector.Span{only(t, spans, "publish EVENTS"), only(t, spans, "accept events")}, "messaging.batch.message_count", fmt.Sprint(count))
		published[traceID(kind, i)+only(t, spans, "publish EVENTS").ID] = true
	}
	s.mustShow(t, "batch-3", "event batch-3, source /traced, type batch$", "trace "+traceID(kind, 3)+": 9 spans in ",
		"accept events .* of 300 events, over grpc$", "  publish EVENTS .* of 300 events, lane ", "to ingress: delivered after ")
	s.mustSettle(t, patience)
	for i := range count {
		if i%3 != 0 && len(s.spans.Trace(traceID(kind, i))) > 0 {
			t.Fatalf("event %d is not sampled and has spans", i)
		}
	}
	// The span of the whole batch is linked to those of the events.
	var batches []collector.Span
	eventually(t, patience, "the batch has a span", func() bool {
		batches = slices.DeleteFunc(s.spans.Spans(), func(s collector.Span) bool {
			return s.Attributes["messaging.batch.message_count"] != fmt.Sprint(count) || len(s.Links) == 0
		})
		return len(batches) == 1
	})
	for _, link := range batches[0].Links {
		delete(published, link.TraceID+link.ID)
	}
	if len(batches[0].Links) != len(sampled) || len(published) > 0 || batches[0].Parent != "" {
		t.Errorf("the batch has %d links and the parent %q, want %d and none; %d events are not linked", len(batches[0].Links), batches[0].Parent, len(sampled), len(published))
	}
}

func mustTraceDeadLetter(t *testing.T, s *traced) {
	s.mustBehave(t, `{"refuse_type":"^refused$"}`)
	s.mustPublish(t.Context(), t, tracedEvent("refused", "refused", "traceparent", traceparent(4, 0, "01")))
	spans := s.mustGet(t, traceID(4, 0), whole)
	mustBeWhole(t, spans, parentID(4, 0))
	for _, name := range []string{"send ingress", "process ingress"} {
		if span := only(t, spans, name); span.Failure != "refused" || span.Attributes["waybill.refusal.code"] == "" {
			t.Errorf("%s: failure %q, attributes %v", name, span.Failure, span.Attributes)
		}
	}
	mustHave(t, []collector.Span{only(t, spans, "settle ingress")}, "waybill.outcome", "dead letter")
	mustHave(t, []collector.Span{only(t, spans, "settle archive"), only(t, spans, "process archive")}, "waybill.outcome", "delivered")
	s.mustShow(t, "refused", `      send ingress .* refused \(VALIDATION_FAILED\)`, `      settle ingress .* dead letter \(VALIDATION_FAILED\)`,
		`to ingress: dead letter \(VALIDATION_FAILED\) after .*, settled after `, "to archive: delivered after ")
}

// What the queue lost comes out of Postgres, in the same trace. The endpoint is down meanwhile.
func mustTraceRetransmit(t *testing.T, s *traced) {
	s.mustBehave(t, `{"down":true}`)
	s.mustPublish(t.Context(), t, tracedEvent("lost", "lost", "traceparent", traceparent(5, 0, "01")))
	eventually(t, patience, "the archive has it", func() bool { return s.pending("archive") == 0 && s.pending("ingress") == 1 })
	nc, err := nats.Connect(s.NATSURL)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), pipeline.EventsStream)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.mustKill(t, "forwarder-1", 9) // it holds the message
	s.mustBehave(t, `{"down":false}`)
	s.mustSettle(t, patience)
	var spans []collector.Span
	var settle, process collector.Span
	eventually(t, patience, "the retransmit is traced to its end", func() bool {
		spans = s.spans.Trace(traceID(5, 0))
		settled := slices.IndexFunc(spans, func(s collector.Span) bool { return s.Name == "settle ingress" })
		if settled < 0 {
			return false
		}
		settle = spans[settled]
		processed := slices.IndexFunc(spans, func(s collector.Span) bool { return s.ID == settle.Parent })
		if processed < 0 {
			return false
		}
		process = spans[processed]
		return true
	})
	publishes := slices.DeleteFunc(slices.Clone(spans), func(s collector.Span) bool { return s.Name != "publish EVENTS" })
	if len(publishes) != 2 || publishes[0].Service != "waybill-ingest" || publishes[1].Service != "waybill-janitor" || publishes[1].Attributes["waybill.attempt"] != "1" {
		t.Fatalf("published by %+v, want ingest, and then a janitor", publishes)
	}
	if publishes[1].Parent != parentID(5, 0) {
		t.Errorf("the retransmit hangs under %q, want the event's own parent %q", publishes[1].Parent, parentID(5, 0))
	}
	mustHang(t, settle, process, "janitor")
	mustHang(t, process, publishes[1], "forwarder")
	s.mustShow(t, "lost", "  publish EVENTS +ingest-1 ", "publish EVENTS +janitor-1 .* retransmit 1, lane ", "to ingress: delivered after ", "  retransmit .* until a janitor has published it again$")
}
