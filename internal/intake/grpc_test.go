package intake

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"golang.org/x/net/http2"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/waybillhq/waybill/internal/governor"
	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/schemas/chipingress"
)

// rpcSite is a gRPC server in front of a recorder, and a client connected to it.
type rpcSite struct {
	chipingress.ChipIngressClient
	conn     *grpc.ClientConn
	address  string
	server   *grpc.Server
	service  *GRPC
	intake   *Intake
	recorder *recorder
}

func mustRPCSite(t *testing.T, change func(*Config), options ...grpc.DialOption) *rpcSite {
	t.Helper()
	r := newRecorder()
	in := mustIntake(t, r, change)
	service := NewGRPC(in)
	server := grpc.NewServer(service.ServerOptions()...)
	service.Register(server)
	RegisterHealth(server)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	options = append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))
	conn, err := grpc.NewClient("passthrough:"+listener.Addr().String(), options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.release() // a stream waits for the engine's answers, whatever became of the test
		conn.Close()
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
		service.Wait()
		checkReleased(t, in)
	})
	return &rpcSite{
		ChipIngressClient: chipingress.NewChipIngressClient(conn), conn: conn, address: listener.Addr().String(),
		server: server, service: service, intake: in, recorder: r,
	}
}

func batchOf(events ...*pb.CloudEvent) *chipingress.CloudEventBatch {
	return &chipingress.CloudEventBatch{Events: events}
}

func invalidEvent(id string) *pb.CloudEvent {
	ce := validEvent(id)
	ce.Source = ""
	return ce
}

func TestPublish(t *testing.T) {
	s := mustRPCSite(t, nil)
	ce := validEvent("one")
	ce.Attributes = map[string]*pb.CloudEventAttributeValue{"seqnum": stringValue("41")}
	response, err := s.Publish(t.Context(), ce)
	if err != nil {
		t.Fatal(err)
	}
	if len(response.Results) != 1 || response.Results[0].EventId != "one" || response.Results[0].Error != nil {
		t.Errorf("response %v", response)
	}
	stored := s.recorder.only(t)
	if stored.Attributes["producerseqnum"].GetCeString() != "41" || stored.Attributes["seqnum"] != nil {
		t.Errorf("stored %v", stored)
	}
}

func TestPublishInvalid(t *testing.T) {
	s := mustRPCSite(t, nil)
	_, err := s.Publish(t.Context(), invalidEvent("x"))
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "source") {
		t.Errorf("error %v", err)
	}
	if got := violations(err); len(got) != 1 || got[0] != "source" {
		t.Errorf("violations %q", got)
	}
	if s.recorder.count() != 0 {
		t.Error("it was submitted")
	}
}

// violations returns the fields of the error's BadRequest details.
func violations(err error) []string {
	var fields []string
	for _, detail := range status.Convert(err).Details() {
		if bad, ok := detail.(*errdetails.BadRequest); ok {
			for _, violation := range bad.FieldViolations {
				fields = append(fields, violation.Field)
			}
		}
	}
	return fields
}

func TestPublishBatchPartial(t *testing.T) {
	s := mustRPCSite(t, func(c *Config) { c.MaxEventBytes = 100 })
	large := validEvent("large")
	large.Data = &pb.CloudEvent_BinaryData{BinaryData: make([]byte, 100)}
	response, err := s.PublishBatch(t.Context(), batchOf(validEvent("a"), invalidEvent("b"), large, validEvent("d")))
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	for _, result := range response.Results {
		said = append(said, fmt.Sprintf("%s %v %s", result.EventId, result.Error.GetErrorCode(), result.Error.GetReason()))
	}
	const failed = "PUBLISH_ERROR_CODE_VALIDATION_FAILED"
	for i, want := range []string{"a PUBLISH_ERROR_CODE_UNKNOWN ", "b " + failed + " source: ", "large " + failed + " data: ", "d PUBLISH_ERROR_CODE_UNKNOWN "} {
		if i >= len(said) || !strings.HasPrefix(said[i], want) {
			t.Errorf("results %q, want %q at %d", said, want, i)
		}
	}
	if len(response.Results) != 4 || response.Results[0].Error != nil || response.Results[3].Error != nil {
		t.Errorf("results %v", response.Results)
	}
	if events := s.recorder.events(t); len(events) != 2 || s.recorder.count() != 1 {
		t.Errorf("stored %v", events)
	}
	if response, err = s.PublishBatch(t.Context(), batchOf(invalidEvent("x"))); err != nil || len(response.Results) != 1 {
		t.Errorf("all bad: %v, %v", response, err)
	}
	if response, err = s.PublishBatch(t.Context(), batchOf()); err != nil || len(response.Results) != 0 {
		t.Errorf("empty: %v, %v", response, err)
	}
	if s.recorder.count() != 1 {
		t.Error("an empty unit was submitted")
	}
}

func TestPublishBatchTransaction(t *testing.T) {
	s := mustRPCSite(t, nil)
	yes := true
	batch := batchOf(validEvent("a"), invalidEvent("b"))
	batch.Options = &chipingress.PublishOptions{TransactionEnabled: &yes}
	_, err := s.PublishBatch(t.Context(), batch)
	if status.Code(err) != codes.InvalidArgument || s.recorder.count() != 0 {
		t.Errorf("error %v, %d units", err, s.recorder.count())
	}
	if got := violations(err); len(got) != 1 || got[0] != "events[1].source" {
		t.Errorf("violations %q", got)
	}
	batch.Events = batch.Events[:1]
	if response, err := s.PublishBatch(t.Context(), batch); err != nil || len(response.Results) != 1 {
		t.Errorf("%v, %v", response, err)
	}
	// Many and lengthy faults still fit the trailers of a client with the usual 8 KiB.
	batch.Events = nil
	for i := range 1000 {
		ce := validEvent("x")
		ce.SpecVersion = strings.Repeat("ü", 500+i)
		batch.Events = append(batch.Events, ce)
	}
	_, err = s.PublishBatch(t.Context(), batch)
	if got := violations(err); len(got) != maxViolations {
		t.Errorf("%d violations", len(got))
	}
}

func TestSmallTrailers(t *testing.T) {
	s := mustRPCSite(t, nil, grpc.WithMaxHeaderListSize(8<<10))
	yes := true
	batch := &chipingress.CloudEventBatch{Options: &chipingress.PublishOptions{TransactionEnabled: &yes}}
	for range 100 {
		ce := validEvent("x")
		ce.Attributes = map[string]*pb.CloudEventAttributeValue{strings.Repeat("ü", 500): stringValue("v")}
		batch.Events = append(batch.Events, ce)
	}
	if _, err := s.PublishBatch(t.Context(), batch); status.Code(err) != codes.InvalidArgument {
		t.Errorf("error %v", err)
	}
}

func TestPublishTooMany(t *testing.T) {
	s := mustRPCSite(t, func(c *Config) { c.MaxRequestEvents = 2 })
	_, err := s.PublishBatch(t.Context(), batchOf(validEvent("a"), validEvent("b"), validEvent("c")))
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "2") {
		t.Errorf("error %v", err)
	}
}

// TestLargeBatch: peers send batches of almost 10 MiB.
func TestLargeBatch(t *testing.T) {
	s := mustRPCSite(t, nil)
	var events []*pb.CloudEvent
	for i := range 11 {
		ce := validEvent(fmt.Sprint(i))
		ce.Data = &pb.CloudEvent_BinaryData{BinaryData: make([]byte, 1_000_000)}
		events = append(events, ce)
	}
	response, err := s.PublishBatch(t.Context(), batchOf(events...))
	if err != nil || len(response.Results) != 11 || response.Results[10].Error != nil {
		t.Errorf("%v, %v", response, err)
	}
}

func TestPublishRefused(t *testing.T) {
	for err, code := range map[error]codes.Code{
		pipeline.ErrOverloaded:     codes.ResourceExhausted,
		pipeline.ErrUnavailable:    codes.Unavailable,
		pipeline.ErrOutcomeUnknown: codes.Unavailable,
		errors.New("new"):          codes.Unavailable,
	} {
		s := mustRPCSite(t, nil)
		s.recorder.verdict = func(int) error { return fmt.Errorf("%w: secret", err) }
		_, got := s.PublishBatch(t.Context(), batchOf(validEvent("a"), invalidEvent("b")))
		if status.Code(got) != code || strings.Contains(got.Error(), "secret") {
			t.Errorf("%v became %v", err, got)
		}
		if _, ok := status.Convert(got).Details()[0].(*errdetails.RetryInfo); !ok {
			t.Errorf("no RetryInfo in %v", got)
		}
	}
}

// TestOverBudget: a call that begins while the budget is used up is refused before it is
// read, and a large one that waited for room in vain; Ping is answered.
func TestOverBudget(t *testing.T) {
	s := mustRPCSite(t, func(c *Config) { c.BodyTimeout = shortTimeout })
	budget := s.intake.Budget()
	budget.TryAcquire(budget.Size() - governor.Window)
	ce := validEvent("large")
	ce.Data = &pb.CloudEvent_BinaryData{BinaryData: make([]byte, 2*governor.Window)}
	if _, err := s.Publish(t.Context(), ce); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("large: %v", err)
	}
	if _, err := s.Publish(t.Context(), validEvent("small")); err != nil {
		t.Errorf("small: %v", err)
	}
	budget.TryAcquire(1)
	_, err := s.Publish(t.Context(), validEvent("small"))
	if status.Code(err) != codes.ResourceExhausted || len(status.Convert(err).Details()) != 1 {
		t.Errorf("over budget: %v", err)
	}
	if pong, err := s.Ping(t.Context(), &chipingress.EmptyRequest{}); err != nil || pong.Message != "pong" {
		t.Errorf("ping: %v, %v", pong, err)
	}
	budget.Release(budget.Size() - governor.Window + 1)
	if s.recorder.count() != 1 {
		t.Errorf("%d units", s.recorder.count())
	}
}

func TestTraceOfCall(t *testing.T) {
	s := mustRPCSite(t, nil)
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", parent)
	if _, err := s.Publish(ctx, validEvent("a")); err != nil {
		t.Fatal(err)
	}
	if got := s.recorder.only(t).Attributes["traceparent"].GetCeString(); got != parent {
		t.Errorf("traceparent %q", got)
	}
}

func TestOtherCalls(t *testing.T) {
	s := mustRPCSite(t, nil)
	_, err := s.RegisterSchema(t.Context(), &chipingress.RegisterSchemaRequest{})
	if status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "schema") {
		t.Errorf("RegisterSchema: %v", err)
	}
	health, err := healthpb.NewHealthClient(s.conn).Check(t.Context(), &healthpb.HealthCheckRequest{Service: "chipingress.pb.ChipIngress"})
	if err != nil || health.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", health, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	reflection, err := reflectionpb.NewServerReflectionClient(s.conn).ServerReflectionInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	request := &reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingSymbol{
		FileContainingSymbol: "chipingress.pb.ChipIngress",
	}}
	if err := reflection.Send(request); err != nil {
		t.Fatal(err)
	}
	if answer, err := reflection.Recv(); err != nil || answer.GetFileDescriptorResponse() == nil {
		t.Errorf("reflection: %v, %v", answer, err)
	}
}

// TestPings: a client may ping as often as the configuration says, without a call too,
// and is sent away when it pings more often. That is grpc's default for the 10 s of known
// clients.
func TestPings(t *testing.T) {
	if got := DefaultConfig().MinPing; got > 10*time.Second {
		t.Errorf("by default a client may ping every %v only", got)
	}
	s := mustRPCSite(t, func(c *Config) { c.MinPing = 20 * time.Millisecond })
	if answers := ping(t, s, 30*time.Millisecond); answers != pings {
		t.Errorf("a patient client got %d answers to %d pings", answers, pings)
	}
	s = mustRPCSite(t, func(c *Config) { c.MinPing = time.Minute })
	if answers := ping(t, s, time.Millisecond); answers == pings {
		t.Error("an impatient client was not sent away: the test shows nothing")
	}
}

const pings = 10

// ping sends pings on a connection without calls, and counts the answers until the last
// of them or GOAWAY.
func ping(t *testing.T, s *rpcSite, every time.Duration) (answers int) {
	t.Helper()
	conn, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	framer := http2.NewFramer(conn, conn)
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	for answers < pings {
		<-time.After(every)
		if err := framer.WritePing(false, [8]byte{byte(answers)}); err != nil {
			return answers
		}
		if !pingAnswered(framer) {
			return answers
		}
		answers++
	}
	return answers
}

func pingAnswered(framer *http2.Framer) bool {
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return false
		}
		switch frame := frame.(type) {
		case *http2.GoAwayFrame:
			return false
		case *http2.PingFrame:
			if frame.IsAck() {
				return true
			}
		}
	}
}

// TestClientCancelled: a call whose client left holds its bytes until the commit's answer.
func TestClientCancelled(t *testing.T) {
	s := mustRPCSite(t, nil)
	s.recorder.held = true
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := s.Publish(ctx, validEvent("a"))
		done <- err
	}()
	s.recorder.waitUnits(t, 1)
	cancel()
	if err := <-done; status.Code(err) != codes.Canceled {
		t.Errorf("error %v", err)
	}
	if s.intake.Budget().Used() == 0 {
		t.Error("the budget was released before the commit's answer")
	}
	s.recorder.answer(0, nil)
	checkReleased(t, s.intake)
}
