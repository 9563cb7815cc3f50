package endpoint

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/waybillhq/waybill/schemas/chipingress"
)

// mustStart runs an endpoint until the test ends.
func mustStart(t *testing.T, change func(*Config)) *Endpoint {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Log = slog.New(slog.DiscardHandler)
	if change != nil {
		change(&cfg)
	}
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	select {
	case <-e.Ready():
	case err := <-done:
		t.Fatalf("Run ended early: %v", err)
	}
	return e
}

func mustDial(t *testing.T, e *Endpoint, options ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	options = append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))
	conn, err := grpc.NewClient(e.Addr(), options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func mustClient(t *testing.T, e *Endpoint) chipingress.ChipIngressClient {
	t.Helper()
	return chipingress.NewChipIngressClient(mustDial(t, e))
}

func event(source, typ, id string, seqnum int) *pb.CloudEvent {
	ce := &pb.CloudEvent{
		Id: id, Source: source, Type: typ, SpecVersion: "1.0",
		Data: &pb.CloudEvent_ProtoData{ProtoData: &anypb.Any{Value: []byte("payload")}},
	}
	if seqnum > 0 {
		ce.Attributes = map[string]*pb.CloudEventAttributeValue{
			"seqnum": {Attr: &pb.CloudEventAttributeValue_CeString{CeString: strconv.Itoa(seqnum)}},
		}
	}
	return ce
}

func batch(events ...*pb.CloudEvent) *chipingress.CloudEventBatch {
	return &chipingress.CloudEventBatch{Events: events}
}

// numbered returns events 1 to n of one key.
func numbered(source, typ string, n int) []*pb.CloudEvent {
	events := make([]*pb.CloudEvent, n)
	for i := range events {
		events[i] = event(source, typ, fmt.Sprintf("%s-%d", typ, i+1), i+1)
	}
	return events
}

func wantCode(t *testing.T, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Fatalf("got %v (%v), want %v", got, err, want)
	}
}

func mustSet(t *testing.T, e *Endpoint, b Behaviour) {
	t.Helper()
	if err := e.SetBehaviour(b); err != nil {
		t.Fatal(err)
	}
}

func TestBatchIsRecordedInOrderWithOneResultEach(t *testing.T) {
	t.Parallel()
	e := mustStart(t, nil)
	events := append(numbered("src", "a", 3), numbered("src", "b", 2)...)
	events = append(events, event("src", "a", "no-seqnum", 0))
	response, err := mustClient(t, e).PublishBatch(t.Context(), batch(events...))
	if err != nil {
		t.Fatal(err)
	}
	records := e.Records()
	if len(response.Results) != len(events) || len(records) != len(events) {
		t.Fatalf("%d results and %d records for %d events", len(response.Results), len(records), len(events))
	}
	for i, ce := range events {
		if r := response.Results[i]; r.EventId != ce.Id || r.Error != nil {
			t.Errorf("result %d is %v, want a success of %s", i, r, ce.Id)
		}
		want := Record{N: int64(i + 1), Source: ce.Source, Type: ce.Type, ID: ce.Id, Seqnum: seqnum(ce), ReceivedAt: records[i].ReceivedAt, DataCRC32C: checksum(ce)}
		if records[i] != want {
			t.Errorf("record %d is %+v, want %+v", i, records[i], want)
		}
		if age := time.Since(records[i].ReceivedAt); age < 0 || age > time.Minute {
			t.Errorf("record %d was received %v ago", i, age)
		}
	}
}

func TestDoublesAndInversionsAreCounted(t *testing.T) {
	t.Parallel()
	e := mustStart(t, nil)
	client := mustClient(t, e)
	a := numbered("src", "a", 4)
	b := numbered("src", "b", 2)
	for _, events := range [][]*pb.CloudEvent{
		{a[0], a[2], b[0], a[1]}, // a[1] is an inversion
		{a[2], b[1]},             // a[2] is a double
		{a[0], a[3]},             // a[0] is a double, not an inversion too
	} {
		if _, err := client.PublishBatch(t.Context(), batch(events...)); err != nil {
			t.Fatal(err)
		}
	}
	want := []KeyStats{
		{Source: "src", Type: "a", Received: 6, Doubles: 2, Inversions: 1, HighestSeqnum: 4},
		{Source: "src", Type: "b", Received: 2, HighestSeqnum: 2},
	}
	stats := e.Stats()
	if !slices.Equal(stats.Keys, want) {
		t.Errorf("keys are %+v, want %+v", stats.Keys, want)
	}
	if stats.Received != 8 || stats.Doubles != 2 || stats.Inversions != 1 || stats.Calls != 3 || stats.Kept != 8 {
		t.Errorf("totals are %+v", stats)
	}
	e.Reset()
	if stats := e.Stats(); stats.Received != 0 || len(stats.Keys) != 0 || len(e.Records()) != 0 {
		t.Errorf("after Reset: %+v", stats)
	}
}

func TestOldRecordsMakeRoom(t *testing.T) {
	t.Parallel()
	e := mustStart(t, func(cfg *Config) { cfg.MaxRecords = 10 })
	client := mustClient(t, e)
	events := numbered("src", "a", 25)
	for _, ce := range events {
		if _, err := client.Publish(t.Context(), ce); err != nil {
			t.Fatal(err)
		}
	}
	// One that is still kept, and one whose record made room.
	if _, err := client.PublishBatch(t.Context(), batch(events[20], events[0])); err != nil {
		t.Fatal(err)
	}
	stats := e.Stats()
	if stats.Received != 27 || stats.Kept != 10 || stats.Doubles != 1 || stats.Inversions != 1 {
		t.Errorf("totals are %+v", stats)
	}
	records := e.Records()
	if len(records) != 10 || records[0].N != 18 || records[0].Seqnum != 18 || records[9].N != 27 || records[9].Seqnum != 1 {
		t.Errorf("records are %+v", records)
	}
	if len(e.service.ledger.seen) > 10 {
		t.Errorf("the set of events grew to %d", len(e.service.ledger.seen))
	}
}

func TestKeysBeyondTheLimitAreNotTracked(t *testing.T) {
	t.Parallel()
	l := newLedger(10)
	for i := range maxKeys + 5 {
		l.add([]Record{{Source: "s", Type: strconv.Itoa(i), ID: "1", Seqnum: 1}})
	}
	stats := l.stats(true)
	if stats.Untracked != 5 || len(stats.Keys) != maxKeys || stats.Received != maxKeys+5 {
		t.Errorf("%d untracked, %d keys, %d received", stats.Untracked, len(stats.Keys), stats.Received)
	}
	if last := l.after(0, 100)[9]; last.Type != strconv.Itoa(maxKeys+4) {
		t.Errorf("the record of an untracked key is %+v", last)
	}
}

func TestReplaysAreTold(t *testing.T) {
	t.Parallel()
	e := mustStart(t, nil)
	replayed := event("s", "t", "1", 1)
	replayed.Attributes["replayid"] = &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeString{CeString: "lost-hour"}}
	if _, err := mustClient(t, e).PublishBatch(t.Context(), batch(event("s", "t", "1", 1), replayed)); err != nil {
		t.Fatal(err)
	}
	if r := e.Records(); len(r) != 2 || r[0].ReplayID != "" || r[1].ReplayID != "lost-hour" {
		t.Errorf("records are %+v", r)
	}

	l := newLedger(10)
	for i := range maxReplays + 5 {
		l.add([]Record{{Source: "s", Type: "t", ID: strconv.Itoa(i), ReplayID: "r" + strconv.Itoa(i)}})
	}
	l.add([]Record{{Source: "s", Type: "t", ID: "again", ReplayID: "r7"}})
	var told []string
	for _, r := range l.after(0, 100) {
		told = append(told, r.ReplayID)
	}
	if told = slices.Compact(told); !slices.Equal(told[len(told)-2:], []string{otherReplay, "r7"}) || len(l.replays) != maxReplays+2 {
		t.Errorf("%d names are kept; the newest records have %v", len(l.replays)-1, told)
	}
}

func TestPartialDelivery(t *testing.T) {
	t.Parallel()
	e := mustStart(t, nil)
	b := DefaultBehaviour()
	b.RefuseType = "^bad"
	mustSet(t, e, b)
	client := mustClient(t, e)
	mixed := batch(event("s", "good", "1", 1), event("s", "bad.one", "2", 1), event("s", "", "3", 1), event("s", "good", "4", 2))
	response, err := client.PublishBatch(t.Context(), mixed)
	if err != nil {
		t.Fatal(err)
	}
	for i, wantError := range []bool{false, true, true, false} {
		failure := response.Results[i].GetError()
		if (failure != nil) != wantError {
			t.Errorf("result %d has error %v", i, failure)
		}
		if failure != nil && failure.ErrorCode != chipingress.PublishErrorCode_PUBLISH_ERROR_CODE_VALIDATION_FAILED {
			t.Errorf("result %d has code %v", i, failure.ErrorCode)
		}
	}
	if stats := e.Stats(); stats.Received != 2 || stats.Refused != 2 {
		t.Errorf("totals are %+v", stats)
	}

	mixed.Options = &chipingress.PublishOptions{TransactionEnabled: proto.Bool(true)}
	_, err = client.PublishBatch(t.Context(), mixed)
	wantCode(t, err, codes.InvalidArgument)
	if got := e.Stats().Received; got != 2 {
		t.Errorf("a failed transaction left %d events, want 2", got)
	}

	single, err := client.Publish(t.Context(), event("s", "bad", "5", 1))
	if err != nil || single.Results[0].GetError() == nil {
		t.Errorf("Publish of a refused event: %v, %v", single, err)
	}
}

func TestBehaviours(t *testing.T) {
	t.Parallel()
	e := mustStart(t, nil)
	client := mustClient(t, e)
	publish := func(typ string) error {
		_, err := client.PublishBatch(t.Context(), batch(event("s", "first", "a", 1), event("s", typ, "b", 1)))
		return err
	}
	with := func(change func(*Behaviour)) {
		b := DefaultBehaviour()
		change(&b)
		mustSet(t, e, b)
		e.Reset()
	}

	with(func(b *Behaviour) { b.PoisonType = "poison" })
	wantCode(t, publish("a.poison"), codes.InvalidArgument)
	wantCode(t, publish("fine"), codes.OK)
	if got := e.Stats().Received; got != 2 {
		t.Errorf("%d received, want 2: a poisoned request is taken in no part", got)
	}

	with(func(b *Behaviour) { b.Overload = true })
	wantCode(t, publish("t"), codes.ResourceExhausted)
	if _, err := client.Ping(t.Context(), &chipingress.EmptyRequest{}); err != nil {
		t.Errorf("Ping under overload: %v", err)
	}

	with(func(b *Behaviour) { b.MaxMessageBytes = 60 })
	err := publish("t")
	wantCode(t, err, codes.ResourceExhausted)
	if !strings.Contains(err.Error(), "larger than max") {
		t.Errorf("%v does not read like gRPC's", err)
	}
	if _, err := client.Publish(t.Context(), event("s", "t", "1", 1)); err != nil {
		t.Errorf("a small message: %v", err)
	}

	with(func(b *Behaviour) { b.RefuseType, b.RefuseCode = "t", "SCHEMA_MISSING" })
	response, err := client.Publish(t.Context(), event("s", "t", "1", 1))
	if err != nil || response.Results[0].GetError().GetErrorCode() != chipingress.PublishErrorCode_PUBLISH_ERROR_CODE_SCHEMA_MISSING {
		t.Errorf("got %v, %v", response, err)
	}

	with(func(b *Behaviour) { b.DelayMS = 60_000 })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = client.Publish(ctx, event("s", "t", "1", 1))
	wantCode(t, err, codes.DeadlineExceeded)
	with(func(b *Behaviour) { b.DelayMS = 100 })
	start := time.Now()
	wantCode(t, publish("t"), codes.OK)
	if took := time.Since(start); took < 100*time.Millisecond {
		t.Errorf("a call took %v despite the delay", took)
	}
}

func TestLostResponsesKeepTheirEvents(t *testing.T) {
	t.Parallel()
	e := mustStart(t, func(cfg *Config) { cfg.Behaviour.FailEvery = 3 })
	client := mustClient(t, e)
	failed := 0
	for _, ce := range numbered("s", "t", 9) {
		if _, err := client.Publish(t.Context(), ce); err != nil {
			wantCode(t, err, codes.Unavailable)
			failed++
		}
	}
	if got := e.Stats().Received; failed != 3 || got != 9 {
		t.Errorf("%d failed and %d received, want 3 and 9", failed, got)
	}
}

func TestDownFailsEveryCall(t *testing.T) {
	t.Parallel()
	e := mustStart(t, nil)
	conn := mustDial(t, e)
	client, health := chipingress.NewChipIngressClient(conn), healthpb.NewHealthClient(conn)
	healthy := func() healthpb.HealthCheckResponse_ServingStatus {
		answer, err := health.Check(t.Context(), &healthpb.HealthCheckRequest{Service: "chipingress.pb.ChipIngress"})
		if err != nil {
			t.Fatal(err)
		}
		return answer.Status
	}
	open, err := client.StreamEvents(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := open.Send(&chipingress.StreamEventsRequest{Event: event("s", "t", "1", 1)}); err != nil {
		t.Fatal(err)
	}
	if _, err := open.Recv(); err != nil {
		t.Fatal(err)
	}
	if got := healthy(); got != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health is %v", got)
	}
	b := DefaultBehaviour()
	b.Down = true
	mustSet(t, e, b)
	if got := healthy(); got != healthpb.HealthCheckResponse_NOT_SERVING {
		t.Errorf("health is %v while down", got)
	}
	if err := open.Send(&chipingress.StreamEventsRequest{Event: event("s", "t", "2", 2)}); err != nil {
		t.Fatal(err)
	}
	_, err = open.Recv()
	wantCode(t, err, codes.Unavailable)
	_, err = client.Ping(t.Context(), &chipingress.EmptyRequest{})
	wantCode(t, err, codes.Unavailable)
	_, err = client.Publish(t.Context(), event("s", "t", "3", 3))
	wantCode(t, err, codes.Unavailable)
	late, err := client.StreamEvents(t.Context())
	if err == nil {
		_, err = late.Recv()
	}
	wantCode(t, err, codes.Unavailable)
	if got := e.Stats().Received; got != 1 {
		t.Errorf("%d received, want the 1 from before", got)
	}
}

func TestStreamAnswersEachMessageInOrder(t *testing.T) {
	t.Parallel()
	e := mustStart(t, func(cfg *Config) { cfg.Behaviour.RefuseType = "bad" })
	stream, err := mustClient(t, e).StreamEvents(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	events := []*pb.CloudEvent{event("s", "t", "1", 1), event("s", "bad", "2", 1), event("s", "t", "3", 2)}
	for _, ce := range events {
		if err := stream.Send(&chipingress.StreamEventsRequest{Event: ce}); err != nil {
			t.Fatal(err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"^OK$", "^VALIDATION_FAILED: .+", "^OK$"} {
		answer, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if matched := regexp.MustCompile(want).MatchString(answer.Status); answer.EventId != events[i].Id || !matched {
			t.Errorf("answer %d is %v, want status %s", i, answer, want)
		}
	}
	if _, err := stream.Recv(); err != io.EOF {
		t.Errorf("the stream ended with %v", err)
	}
}

func TestRegisterSchemaIsUnimplemented(t *testing.T) {
	t.Parallel()
	_, err := mustClient(t, mustStart(t, nil)).RegisterSchema(t.Context(), &chipingress.RegisterSchemaRequest{})
	wantCode(t, err, codes.Unimplemented)
}

// TestExistingEmitter batches as known emitters do: just under 10 MiB a request, pings
// every 10 s, streams or not.
func TestExistingEmitter(t *testing.T) {
	t.Parallel()
	e := mustStart(t, nil)
	client := chipingress.NewChipIngressClient(mustDial(t, e,
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(16<<20), grpc.MaxCallRecvMsgSize(16<<20))))
	pong, err := client.Ping(t.Context(), &chipingress.EmptyRequest{})
	if err != nil || pong.Message == "" {
		t.Fatalf("Ping: %v, %v", pong, err)
	}
	request := batch()
	for size := 0; ; {
		ce := event("emitter", "t", fmt.Sprint(len(request.Events)+1), len(request.Events)+1)
		ce.Data = &pb.CloudEvent_ProtoData{ProtoData: &anypb.Any{Value: bytes.Repeat([]byte{7}, 20_000)}}
		if size += proto.Size(ce) + 5; size > 10<<20-10<<10 {
			break
		}
		request.Events = append(request.Events, ce)
	}
	response, err := client.PublishBatch(t.Context(), request)
	if err != nil {
		t.Fatalf("a request of %d bytes: %v", proto.Size(request), err)
	}
	if len(response.Results) != len(request.Events) {
		t.Errorf("%d results for %d events", len(response.Results), len(request.Events))
	}
	request.Events = append(request.Events, request.Events...)
	_, err = client.PublishBatch(t.Context(), request)
	wantCode(t, err, codes.ResourceExhausted)
}

// TestPingsAreTolerated speaks HTTP/2 by hand, because grpc-go does not ping more often
// than every 10 s. A server without an enforcement policy of its own says GOAWAY to the
// fourth ping of a connection without streams.
func TestPingsAreTolerated(t *testing.T) {
	t.Parallel()
	if DefaultConfig().MinPingInterval > 9*time.Second {
		t.Errorf("the default interval of %v leaves no room for a ping every 10 s", DefaultConfig().MinPingInterval)
	}
	const interval = 50 * time.Millisecond
	e := mustStart(t, func(cfg *Config) { cfg.MinPingInterval = interval })
	conn, err := net.Dial("tcp", e.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	framer := http2.NewFramer(conn, conn)
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	for i := range 8 {
		if err := framer.WritePing(false, [8]byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
		waitForPong(t, framer, byte(i))
		<-time.After(2 * interval) // from its pong on: no ticker, which would make up for a delay
	}
}

func waitForPong(t *testing.T, framer *http2.Framer, number byte) {
	t.Helper()
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		switch f := frame.(type) {
		case *http2.GoAwayFrame:
			t.Fatalf("GOAWAY to ping %d: %s", number, f.DebugData())
		case *http2.PingFrame:
			if f.IsAck() && f.Data[0] == number {
				return
			}
		}
	}
}

func TestReflectionKnowsTheService(t *testing.T) {
	t.Parallel()
	stream, err := reflectionpb.NewServerReflectionClient(mustDial(t, mustStart(t, nil))).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, symbol := range []string{"chipingress.pb.ChipIngress", "io.cloudevents.v1.CloudEvent", "chip_common.Schema"} {
		err := stream.Send(&reflectionpb.ServerReflectionRequest{
			MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: symbol},
		})
		if err != nil {
			t.Fatal(err)
		}
		answer, err := stream.Recv()
		if err != nil || len(answer.GetFileDescriptorResponse().GetFileDescriptorProto()) == 0 {
			t.Errorf("%s: %v, %v", symbol, answer, err)
		}
	}
}

// request makes an admin call and returns the status and the body.
func request(t *testing.T, e *Endpoint, method, path, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+e.AdminAddr()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

func TestAdminEvents(t *testing.T) {
	t.Parallel()
	e := mustStart(t, nil)
	client := mustClient(t, e)
	for _, ce := range append(numbered("s", "a", 3), numbered("s2", "b", 2)...) {
		if _, err := client.Publish(t.Context(), ce); err != nil {
			t.Fatal(err)
		}
	}
	for query, want := range map[string][]int64{
		"":                  {1, 2, 3, 4, 5},
		"?source=s2":        {4, 5},
		"?type=a":           {1, 2, 3},
		"?type=a&source=s2": {},
		"?since=3":          {4, 5},
		"?since=1&source=s": {2, 3},
		"?since=99":         {},
	} {
		code, body := request(t, e, http.MethodGet, "/events"+query, "")
		got := []int64{}
		for scanner := bufio.NewScanner(strings.NewReader(body)); scanner.Scan(); {
			var r Record
			if err := json.Unmarshal(scanner.Bytes(), &r); err != nil {
				t.Fatalf("%s: %v", scanner.Text(), err)
			}
			got = append(got, r.N)
		}
		if code != http.StatusOK || !slices.Equal(got, want) {
			t.Errorf("/events%s: %d, %v, want %v", query, code, got, want)
		}
	}
	for _, path := range []string{"/events?nope=1", "/events?since=0&Type=a", "/stats?since=0"} {
		if code, body := request(t, e, http.MethodGet, path, ""); code != http.StatusBadRequest || !strings.Contains(body, "there is no parameter") {
			t.Errorf("%s: %d, %s", path, code, body)
		}
	}
	if code, body := request(t, e, http.MethodGet, "/events?since=x", ""); code != http.StatusBadRequest || !strings.Contains(body, "since") {
		t.Errorf("a bad since: %d %s", code, body)
	}
}

func TestAdminEventsReadsManyRecords(t *testing.T) {
	t.Parallel()
	e := mustStart(t, nil)
	const n = 2*eventsPerRead + 7
	if _, err := mustClient(t, e).PublishBatch(t.Context(), batch(numbered("s", "t", n)...)); err != nil {
		t.Fatal(err)
	}
	_, body := request(t, e, http.MethodGet, "/events", "")
	if got := strings.Count(body, "\n"); got != n {
		t.Errorf("%d lines, want %d", got, n)
	}
}

func TestAdminStatsBehaviourAndReset(t *testing.T) {
	t.Parallel()
	e := mustStart(t, nil)
	if _, err := mustClient(t, e).Publish(t.Context(), event("s", "t", "1", 1)); err != nil {
		t.Fatal(err)
	}
	_, body := request(t, e, http.MethodGet, "/stats", "")
	var stats Stats
	if err := json.Unmarshal([]byte(body), &stats); err != nil || stats.Received != 1 || len(stats.Keys) != 1 {
		t.Errorf("/stats: %v, %s", err, body)
	}
	if _, body := request(t, e, http.MethodGet, "/stats?keys=false", ""); strings.Contains(body, `"type"`) {
		t.Errorf("/stats?keys=false: %s", body)
	}
	if code, _ := request(t, e, http.MethodGet, "/stats?keys=perhaps", ""); code != http.StatusBadRequest {
		t.Errorf("/stats?keys=perhaps: %d", code)
	}

	wantReady := func(want int) {
		t.Helper()
		if code, _ := request(t, e, http.MethodGet, "/readyz", ""); code != want {
			t.Errorf("/readyz: %d, want %d", code, want)
		}
	}
	wantReady(http.StatusOK)
	if code, body := request(t, e, http.MethodPut, "/behaviour", `{"down":true,"delay_ms":5}`); code != http.StatusOK {
		t.Errorf("PUT /behaviour: %d %s", code, body)
	}
	if b := e.Behaviour(); !b.Down || b.DelayMS != 5 || b.RefuseCode != "VALIDATION_FAILED" {
		t.Errorf("behaviour is %+v", b)
	}
	wantReady(http.StatusServiceUnavailable)
	if code, _ := request(t, e, http.MethodGet, "/livez", ""); code != http.StatusOK {
		t.Errorf("/livez: %d", code)
	}
	request(t, e, http.MethodPut, "/behaviour", `{}`)
	if b := e.Behaviour(); b != DefaultBehaviour() {
		t.Errorf("behaviour is %+v after {}", b)
	}
	if _, body := request(t, e, http.MethodGet, "/behaviour", ""); !strings.Contains(body, `"refuse_code": "VALIDATION_FAILED"`) {
		t.Errorf("GET /behaviour: %s", body)
	}
	if code, _ := request(t, e, http.MethodPost, "/reset", ""); code != http.StatusNoContent || e.Stats().Received != 0 {
		t.Errorf("POST /reset: %d, %+v", code, e.Stats())
	}
}

func TestAdminRefusesBadBehaviour(t *testing.T) {
	t.Parallel()
	e := mustStart(t, nil)
	if code, body := request(t, e, http.MethodGet, "/", ""); code != http.StatusOK || !strings.Contains(body, "PUT  /behaviour") {
		t.Errorf("GET /: %d %s", code, body)
	}
	for body, mention := range map[string]string{
		`{`:                        "EOF",
		`{"slow":1}`:               `"slow"; GET /behaviour shows`,
		`{"delay_ms":-1}`:          "delay_ms",
		`{"delay_ms":600001}`:      "delay_ms",
		`{"fail_every":-1}`:        "fail_every",
		`{"max_message_bytes":-}`:  "invalid",
		`{"max_message_bytes":-1}`: "max_message_bytes",
		`{"refuse_type":"("}`:      "refuse_type",
		`{"poison_type":"["}`:      "poison_type",
		`{"refuse_code":"NO"}`:     "SCHEMA_MISSING",
	} {
		if code, text := request(t, e, http.MethodPut, "/behaviour", body); code != http.StatusBadRequest || !strings.Contains(text, mention) {
			t.Errorf("%s: %d %s, want 400 that mentions %s", body, code, text, mention)
		}
	}
	if e.Behaviour() != DefaultBehaviour() {
		t.Errorf("a refused behaviour took hold: %+v", e.Behaviour())
	}
}

func TestConfigIsValidated(t *testing.T) {
	t.Parallel()
	for field, change := range map[string]func(*Config){
		"Addr":            func(c *Config) { c.Addr = "nowhere" },
		"AdminAddr":       func(c *Config) { c.AdminAddr = "" },
		"MaxRecords":      func(c *Config) { c.MaxRecords = 0 },
		"MaxMessageBytes": func(c *Config) { c.MaxMessageBytes = 0 },
		"MinPingInterval": func(c *Config) { c.MinPingInterval = 0 },
		"Behaviour":       func(c *Config) { c.Behaviour = Behaviour{} },
		"Log":             func(c *Config) { c.Log = nil },
	} {
		cfg := DefaultConfig()
		change(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestRunReportsWhatItCannotListenOn(t *testing.T) {
	t.Parallel()
	taken := mustStart(t, nil)
	for name, change := range map[string]func(*Config){
		"gRPC":  func(c *Config) { c.Addr = taken.Addr() },
		"admin": func(c *Config) { c.AdminAddr = taken.AdminAddr() },
	} {
		cfg := DefaultConfig()
		change(&cfg)
		e, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if e.Addr() != "" || e.AdminAddr() != "" {
			t.Errorf("addresses before Run: %q, %q", e.Addr(), e.AdminAddr())
		}
		if err := e.Run(t.Context()); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("Run: %v, want an error about %s", err, name)
		}
	}
	if err := taken.Run(t.Context()); err == nil {
		t.Error("a second Run succeeded")
	}
}

func TestRunEndsDespiteAnOpenCall(t *testing.T) {
	t.Parallel()
	cfg := DefaultConfig()
	cfg.Log = slog.New(slog.DiscardHandler)
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	<-e.Ready()
	stream, err := mustClient(t, e).StreamEvents(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&chipingress.StreamEventsRequest{Event: event("s", "t", "1", 1)}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("Run: %v", err)
		}
	case <-time.After(stopTimeout + time.Minute):
		t.Fatal("Run did not end")
	}
}

// Taken sees what is taken, whole and before the answer, and nothing that is refused.
func TestTaken(t *testing.T) {
	var mu sync.Mutex
	var taken []string
	e := mustStart(t, func(c *Config) {
		c.Behaviour.RefuseType, c.Behaviour.FailEvery = "bad", 2
		c.Taken = func(events []*pb.CloudEvent) {
			mu.Lock()
			defer mu.Unlock()
			for _, ce := range events {
				taken = append(taken, ce.Id+"="+ce.GetTextData())
			}
		}
	})
	client := mustClient(t, e)
	one, two, three := event("/s", "t", "1", 1), event("/s", "bad", "2", 1), event("/s", "t", "3", 2)
	one.Data = &pb.CloudEvent_TextData{TextData: "x"}
	if _, err := client.PublishBatch(t.Context(), &chipingress.CloudEventBatch{Events: []*pb.CloudEvent{one, two, three}}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Publish(t.Context(), three); status.Code(err) != codes.Unavailable { // taken, and the answer lost
		t.Errorf("%v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if got := strings.Join(taken, " "); got != "1=x 3= 3=" {
		t.Errorf("taken: %s", got)
	}
}
