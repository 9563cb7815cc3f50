package sinks

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/waybillhq/waybill/internal/endpoint"
	"github.com/waybillhq/waybill/internal/endpoint/endpointtest"
	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/schemas/chipingress"
)

func mustBehave(t *testing.T, e *endpoint.Endpoint, change func(*endpoint.Behaviour)) {
	t.Helper()
	b := endpoint.DefaultBehaviour()
	change(&b)
	if err := e.SetBehaviour(b); err != nil {
		t.Fatal(err)
	}
}

// mustIngress returns a sink that is closed when the test ends.
func mustIngress(t *testing.T, addr string, change func(*IngressConfig)) *Ingress {
	t.Helper()
	cfg := DefaultIngressConfig()
	cfg.Endpoint = addr
	cfg.Log = slog.New(slog.DiscardHandler)
	if change != nil {
		change(&cfg)
	}
	s, err := NewIngress(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

// script is a generated ChipIngress server that answers as the test says.
type script struct {
	chipingress.UnimplementedChipIngressServer
	publish func(context.Context, *chipingress.CloudEventBatch) (*chipingress.PublishResponse, error)
}

func (s script) PublishBatch(ctx context.Context, batch *chipingress.CloudEventBatch) (*chipingress.PublishResponse, error) {
	return s.publish(ctx, batch)
}

// mustServe runs a scripted server until the test ends and returns its address.
func mustServe(t *testing.T, publish func(*chipingress.CloudEventBatch) (*chipingress.PublishResponse, error), options ...grpc.ServerOption) string {
	t.Helper()
	return mustServeContext(t, func(_ context.Context, b *chipingress.CloudEventBatch) (*chipingress.PublishResponse, error) {
		return publish(b)
	}, options...)
}

func mustServeContext(t *testing.T, publish func(context.Context, *chipingress.CloudEventBatch) (*chipingress.PublishResponse, error), options ...grpc.ServerOption) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(options...)
	chipingress.RegisterChipIngressServer(server, script{publish: publish})
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return listener.Addr().String()
}

func success(events []*pb.CloudEvent) *chipingress.PublishResponse {
	response := &chipingress.PublishResponse{}
	for _, ce := range events {
		response.Results = append(response.Results, &chipingress.PublishResult{EventId: ce.Id})
	}
	return response
}

func newCE(typ string, seqnum, payload int) *pb.CloudEvent {
	return &pb.CloudEvent{
		Id: fmt.Sprintf("%s-%d", typ, seqnum), Source: "src", SpecVersion: "1.0", Type: typ,
		Attributes: map[string]*pb.CloudEventAttributeValue{
			"seqnum": {Attr: &pb.CloudEventAttributeValue_CeString{CeString: fmt.Sprint(seqnum)}},
		},
		Data: &pb.CloudEvent_ProtoData{ProtoData: &anypb.Any{Value: make([]byte, payload)}},
	}
}

// newBatch encodes events as one batch.
func newBatch(number int64, events ...*pb.CloudEvent) *pipeline.Batch {
	b := &pipeline.Batch{ID: pipeline.BatchID{Number: number, Token: 7}}
	for _, ce := range events {
		encoded, err := proto.Marshal(ce)
		if err != nil {
			panic(err)
		}
		b.Events = append(b.Events, encoded)
	}
	return b
}

func itemsOf(batches ...*pipeline.Batch) []pipeline.Item {
	var items []pipeline.Item
	for _, b := range batches {
		for i := range b.Events {
			items = append(items, pipeline.Item{Batch: b, Index: i})
		}
	}
	return items
}

// sequence returns n items of one type, in one batch.
func sequence(typ string, n, payload int) []pipeline.Item {
	events := make([]*pb.CloudEvent, n)
	for i := range events {
		events[i] = newCE(typ, i+1, payload)
	}
	return itemsOf(newBatch(1, events...))
}

func mustSend(t *testing.T, s *Ingress, items []pipeline.Item) []pipeline.Result {
	t.Helper()
	results, err := s.Send(t.Context(), 0, items)
	if err != nil {
		t.Fatalf("Send: %v", err)
	}
	if len(results) != len(items) {
		t.Fatalf("%d results for %d items", len(results), len(items))
	}
	return results
}

func count(results []pipeline.Result, v pipeline.Verdict) int {
	n := 0
	for _, r := range results {
		if r.Verdict == v {
			n++
		}
	}
	return n
}

func wantAll(t *testing.T, results []pipeline.Result, want pipeline.Verdict) {
	t.Helper()
	for i, r := range results {
		if r.Verdict != want {
			t.Fatalf("result %d is %+v, want verdict %d", i, r, want)
		}
		if r.Verdict != pipeline.Delivered && r.Reason == "" {
			t.Fatalf("result %d has no reason", i)
		}
	}
}

func seqnums(records []endpoint.Record) []int64 {
	var n []int64
	for _, r := range records {
		n = append(n, r.Seqnum)
	}
	return n
}

func TestIngressDeliversInOrderWithinTheLimits(t *testing.T) {
	t.Parallel()
	e, _ := endpointtest.Start(t, nil)
	s := mustIngress(t, e.Addr(), func(c *IngressConfig) { c.MaxRequestEvents = 7 })
	var batches []*pipeline.Batch
	for b := range 5 {
		var events []*pb.CloudEvent
		for i := range 10 {
			events = append(events, newCE("t", b*10+i+1, 50))
		}
		batches = append(batches, newBatch(int64(b+1), events...))
	}
	wantAll(t, mustSend(t, s, itemsOf(batches...)), pipeline.Delivered)
	records := e.Records()
	if len(records) != 50 || !slices.IsSorted(seqnums(records)) {
		t.Errorf("the endpoint has %v", seqnums(records))
	}
	if stats := e.Stats(); stats.Calls != 8 || stats.Doubles != 0 {
		t.Errorf("endpoint: %+v, want 8 calls", stats)
	}
	if got := mustSend(t, s, nil); len(got) != 0 {
		t.Errorf("results for nothing: %v", got)
	}
	want := pipeline.Limits{Events: 7, Bytes: 4_000_000}
	if s.Name() != "ingress" || s.Limits() != want {
		t.Errorf("%s has limits %+v", s.Name(), s.Limits())
	}
}

// TestIngressRequestIsWhatAGeneratedClientSends compares what a generated server
// decodes with what was encoded.
func TestIngressRequestIsWhatAGeneratedClientSends(t *testing.T) {
	t.Parallel()
	events := []*pb.CloudEvent{
		newCE("proto", 1, 10),
		{Id: "binary", Source: "s", Type: "t", SpecVersion: "1.0", Data: &pb.CloudEvent_BinaryData{BinaryData: bytes.Repeat([]byte{0, 255}, 100_000)}},
		{Id: "text", Source: "s", Type: "t", SpecVersion: "1.0", Data: &pb.CloudEvent_TextData{TextData: "héllo"}},
		{Id: "bare", Source: "s", Type: "t", SpecVersion: "1.0", Attributes: map[string]*pb.CloudEventAttributeValue{
			"a": {Attr: &pb.CloudEventAttributeValue_CeBoolean{CeBoolean: true}},
			"b": {Attr: &pb.CloudEventAttributeValue_CeInteger{CeInteger: -4}},
			"c": {Attr: &pb.CloudEventAttributeValue_CeBytes{CeBytes: []byte{1, 2}}},
			"d": {Attr: &pb.CloudEventAttributeValue_CeUri{CeUri: "http://x/"}},
			"e": {Attr: &pb.CloudEventAttributeValue_CeUriRef{CeUriRef: "/y"}},
			"f": {Attr: &pb.CloudEventAttributeValue_CeTimestamp{CeTimestamp: timestamppb.Now()}},
		}},
		{},
	}
	var got *chipingress.CloudEventBatch
	addr := mustServe(t, func(b *chipingress.CloudEventBatch) (*chipingress.PublishResponse, error) {
		got = b
		return success(b.Events), nil
	})
	wantAll(t, mustSend(t, mustIngress(t, addr, nil), itemsOf(newBatch(1, events[:2]...), newBatch(2, events[2:]...))), pipeline.Delivered)
	if want := (&chipingress.CloudEventBatch{Events: events}); !proto.Equal(got, want) {
		t.Errorf("the server decoded\n%v, want\n%v", got, want)
	}
}

func TestIngressCodecRefusesOtherMessages(t *testing.T) {
	t.Parallel()
	if _, err := newIngressCodec().Marshal("text"); err == nil {
		t.Error("a string was encoded")
	}
}

func TestSplitIngressKeepsEveryLimit(t *testing.T) {
	t.Parallel()
	const seed = 1
	random := mathrand.New(mathrand.NewPCG(seed, seed))
	for range 500 {
		b := &pipeline.Batch{}
		for range random.IntN(60) {
			b.Events = append(b.Events, make([]byte, random.IntN(300)))
		}
		items, maxBytes, maxEvents := itemsOf(b), 1+random.IntN(600), 1+random.IntN(20)
		next := 0
		spans := splitIngress(items, maxBytes, maxEvents)
		for i, span := range spans {
			size := ingressRequest(items[span.from:span.to]).size()
			switch n := span.to - span.from; {
			case span.from != next || n < 1:
				t.Fatalf("span %+v after %d", span, next)
			case n > maxEvents:
				t.Fatalf("%d events in a request, limit %d", n, maxEvents)
			case n > 1 && size > maxBytes:
				t.Fatalf("%d bytes in a request, limit %d", size, maxBytes)
			case i+1 < len(spans) && n < maxEvents && size+ingressElementSize(items[span.to]) <= maxBytes:
				t.Fatalf("span %+v had room for one more", span)
			}
			next = span.to
		}
		if next != len(items) {
			t.Fatalf("%d of %d items in spans", next, len(items))
		}
	}
}

func TestIngressRequestSizeIsThatOfTheEncoding(t *testing.T) {
	t.Parallel()
	for _, payload := range []int{0, 1, 60, 120, 130, 16_300, 16_400, 100_000} {
		items := sequence("t", 3, payload)
		body, err := newIngressCodec().Marshal(ingressRequest(items))
		if err != nil {
			t.Fatal(err)
		}
		if size := ingressRequest(items).size(); size != body.Len() {
			t.Errorf("payload %d: size %d, encoding %d", payload, size, body.Len())
		}
		body.Free()
	}
}

func TestIngressEventID(t *testing.T) {
	t.Parallel()
	encoded := sequence("t", 1, 10)[0].Encoded()
	for name, c := range map[string]struct {
		encoded []byte
		want    string
	}{
		"first field":    {encoded, "t-1"},
		"later field":    {append([]byte{0x12, 1, 's'}, encoded...), "t-1"},
		"none":           {[]byte{0x12, 1, 's'}, ""},
		"empty":          {nil, ""},
		"bad tag":        {[]byte{0xff}, ""},
		"cut off":        {[]byte{0x12, 9, 's'}, ""},
		"cut off id":     {[]byte{0x0a, 9, 's'}, ""},
		"id of a number": {[]byte{0x08, 9}, ""},
	} {
		if got := string(ingressEventID(c.encoded)); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestIngressReadsEachResult(t *testing.T) {
	t.Parallel()
	ok := func(id string) *chipingress.PublishResult { return &chipingress.PublishResult{EventId: id} }
	failed := func(id string, code int32) *chipingress.PublishResult {
		return &chipingress.PublishResult{EventId: id, Error: &chipingress.PublishError{
			ErrorCode: chipingress.PublishErrorCode(code), Reason: "because",
		}}
	}
	const d, x, r = pipeline.Delivered, pipeline.Refused, pipeline.Retry
	for name, c := range map[string]struct {
		results    []*chipingress.PublishResult
		want       [3]pipeline.Verdict
		code       string // of the refused one
		mismatched int64
	}{
		"all taken":             {results: []*chipingress.PublishResult{ok("t-1"), ok("t-2"), ok("t-3")}, want: [3]pipeline.Verdict{d, d, d}},
		"without ids":           {results: []*chipingress.PublishResult{ok(""), ok(""), failed("", 1)}, want: [3]pipeline.Verdict{d, d, x}, code: "VALIDATION_FAILED"},
		"validation failed":     {results: []*chipingress.PublishResult{ok("t-1"), failed("t-2", 1), ok("t-3")}, want: [3]pipeline.Verdict{d, x, d}, code: "VALIDATION_FAILED"},
		"schema missing":        {results: []*chipingress.PublishResult{ok("t-1"), failed("t-2", 2), ok("t-3")}, want: [3]pipeline.Verdict{d, x, d}, code: "SCHEMA_MISSING"},
		"encode error":          {results: []*chipingress.PublishResult{ok("t-1"), failed("t-2", 3), ok("t-3")}, want: [3]pipeline.Verdict{d, x, d}, code: "ENCODE_ERROR"},
		"domain":                {results: []*chipingress.PublishResult{ok("t-1"), failed("t-2", 4), ok("t-3")}, want: [3]pipeline.Verdict{d, x, d}, code: "DOMAIN_MISCONFIGURATION"},
		"unknown":               {results: []*chipingress.PublishResult{ok("t-1"), failed("t-2", 0), ok("t-3")}, want: [3]pipeline.Verdict{d, r, d}},
		"a code of the future":  {results: []*chipingress.PublishResult{ok("t-1"), failed("t-2", 99), ok("t-3")}, want: [3]pipeline.Verdict{d, r, d}},
		"no results":            {want: [3]pipeline.Verdict{r, r, r}, mismatched: 3},
		"the last is missing":   {results: []*chipingress.PublishResult{ok("t-1"), ok("t-2")}, want: [3]pipeline.Verdict{d, d, r}, mismatched: 1},
		"the first is missing":  {results: []*chipingress.PublishResult{ok("t-2"), failed("t-3", 1)}, want: [3]pipeline.Verdict{r, r, r}, mismatched: 3},
		"missing, without ids":  {results: []*chipingress.PublishResult{ok(""), ok("")}, want: [3]pipeline.Verdict{r, r, r}, mismatched: 3},
		"one too many":          {results: []*chipingress.PublishResult{ok("t-1"), ok("t-2"), ok("t-3"), ok("t-4")}, want: [3]pipeline.Verdict{d, d, d}, mismatched: 1},
		"too many, without ids": {results: []*chipingress.PublishResult{ok(""), ok(""), ok(""), ok("")}, want: [3]pipeline.Verdict{r, r, r}, mismatched: 4},
		"two are exchanged":     {results: []*chipingress.PublishResult{ok("t-1"), failed("t-3", 1), ok("t-2")}, want: [3]pipeline.Verdict{d, r, r}, mismatched: 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := mustServe(t, func(*chipingress.CloudEventBatch) (*chipingress.PublishResponse, error) {
				return &chipingress.PublishResponse{Results: c.results}, nil
			})
			reader := metric.NewManualReader()
			s := mustIngress(t, addr, func(cfg *IngressConfig) {
				cfg.Meter = metric.NewMeterProvider(metric.WithReader(reader)).Meter("test")
			})
			results := mustSend(t, s, sequence("t", 3, 0))
			for i, want := range c.want {
				got := results[i]
				if got.Verdict != want || (want != d) != (got.Reason != "") {
					t.Errorf("result %d is %+v, want verdict %d", i, got, want)
				}
				if want == x && (got.Code != c.code || got.Reason != "because") {
					t.Errorf("result %d is %+v, want code %s", i, got, c.code)
				}
			}
			if got := mustSum(t, reader, "waybill.sink.results.mismatched"); got != c.mismatched {
				t.Errorf("%d mismatched, want %d", got, c.mismatched)
			}
		})
	}
}

func mustSum(t *testing.T, reader *metric.ManualReader, name string) int64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &all); err != nil {
		t.Fatal(err)
	}
	total := int64(0)
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			if m.Name != name {
				continue
			}
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range data.DataPoints {
					total += p.Value
				}
			case metricdata.Histogram[int64]:
				for _, p := range data.DataPoints {
					total += p.Sum
				}
			}
		}
	}
	return total
}

// TestIngressStatusesThatRefuseNothing: what may be the endpoint's fault, or that of the
// configuration, must not make a dead letter.
func TestIngressStatusesThatRefuseNothing(t *testing.T) {
	t.Parallel()
	var code atomic.Uint32
	addr := mustServe(t, func(*chipingress.CloudEventBatch) (*chipingress.PublishResponse, error) {
		return nil, status.Error(codes.Code(code.Load()), "no")
	})
	s := mustIngress(t, addr, nil)
	for c := codes.Canceled; c <= codes.Unauthenticated; c++ {
		if c == codes.InvalidArgument {
			continue
		}
		code.Store(uint32(c))
		for _, n := range []int{1, 3} {
			results, err := s.Send(t.Context(), 0, sequence("t", n, 0))
			if status.Code(err) != c || results != nil {
				t.Errorf("%v: results %v, error %v", c, results, err)
			}
		}
	}
}

func TestIngressKeepsTheResultsBeforeAFailure(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	addr := mustServe(t, func(b *chipingress.CloudEventBatch) (*chipingress.PublishResponse, error) {
		if calls.Add(1) == 3 {
			return nil, status.Error(codes.ResourceExhausted, "quota\x00exceeded")
		}
		return success(b.Events), nil
	})
	s := mustIngress(t, addr, func(c *IngressConfig) { c.MaxRequestEvents = 10 })
	results := mustSend(t, s, sequence("t", 50, 0))
	wantAll(t, results[:20], pipeline.Delivered)
	wantAll(t, results[20:], pipeline.Retry)
	if !strings.Contains(results[25].Reason, "quota") || strings.Contains(results[25].Reason, "\x00") {
		t.Errorf("reason is %q", results[25].Reason)
	}
	if got := calls.Load(); got != 3 {
		t.Errorf("%d calls, want 3: what comes after a failure would overtake it", got)
	}
}

func TestIngressStopsAfterAnEventThatWaits(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	addr := mustServe(t, func(b *chipingress.CloudEventBatch) (*chipingress.PublishResponse, error) {
		response := success(b.Events)
		if calls.Add(1) == 2 {
			response.Results[1].Error = &chipingress.PublishError{Reason: "hiccup"}
		}
		return response, nil
	})
	s := mustIngress(t, addr, func(c *IngressConfig) { c.MaxRequestEvents = 2 })
	results := mustSend(t, s, sequence("t", 6, 0))
	wantAll(t, results[:3], pipeline.Delivered)
	wantAll(t, results[3:], pipeline.Retry)
	if !strings.Contains(results[3].Reason, "hiccup") || calls.Load() != 2 {
		t.Errorf("%d calls, results %+v", calls.Load(), results)
	}
}

func TestIngressFindsPoisonEvents(t *testing.T) {
	t.Parallel()
	e, _ := endpointtest.Start(t, nil)
	mustBehave(t, e, func(b *endpoint.Behaviour) { b.PoisonType = "poison" })
	s := mustIngress(t, e.Addr(), nil)
	poison := map[int]bool{0: true, 37: true, 38: true, 99: true}
	var events []*pb.CloudEvent
	var healthy []int64
	for i := range 100 {
		typ := "good"
		if poison[i] {
			typ = "poison"
		} else {
			healthy = append(healthy, int64(i+1))
		}
		events = append(events, newCE(typ, i+1, 0))
	}
	results := mustSend(t, s, itemsOf(newBatch(1, events[:60]...), newBatch(2, events[60:]...)))
	for i, r := range results {
		switch {
		case !poison[i] && r.Verdict != pipeline.Delivered:
			t.Errorf("event %d: %+v", i, r)
		case poison[i] && (r.Verdict != pipeline.Refused || r.Code != "INVALID_ARGUMENT" || !strings.Contains(r.Reason, "spoils")):
			t.Errorf("poison event %d: %+v", i, r)
		case poison[i] && strings.Contains(r.Reason, "rpc error"):
			t.Errorf("reason %q has more than the endpoint's words", r.Reason)
		}
	}
	if got := seqnums(e.Records()); !slices.Equal(got, healthy) {
		t.Errorf("the endpoint has %v, want %v", got, healthy)
	}
}

// What cannot be decoded makes an endpoint refuse the whole request, with a status that says
// nothing of it; the others must not wait for ever.
func TestIngressRefusesWhatCannotBeDecoded(t *testing.T) {
	t.Parallel()
	e, _ := endpointtest.Start(t, nil)
	s := mustIngress(t, e.Addr(), nil)
	batch := newBatch(1)
	for i := range 10 {
		encoded, err := proto.Marshal(newCE("t", i+1, 50))
		if err != nil {
			t.Fatal(err)
		}
		batch.Events = append(batch.Events, encoded)
	}
	garbage := map[int]bool{0: true, 4: true, 5: true, 9: true}
	batch.Events[0] = []byte("\xff\x00no event")
	batch.Events[4] = batch.Events[4][:20]
	batch.Events[5] = []byte("\x0a\x02\xff\xfe") // an id that is not valid UTF-8
	batch.Events[9] = []byte{0x0a}
	for i, result := range mustSend(t, s, itemsOf(batch)) {
		want := pipeline.Result{Verdict: pipeline.Delivered}
		if garbage[i] {
			want = pipeline.Result{Verdict: pipeline.Refused, Code: codeMalformedEvent, Reason: result.Reason}
		}
		if result != want || garbage[i] != (result.Reason != "") {
			t.Errorf("event %d: %+v, want %+v", i, result, want)
		}
	}
	if got := seqnums(e.Records()); !slices.Equal(got, []int64{2, 3, 4, 7, 8, 9}) {
		t.Errorf("the endpoint has %v", got)
	}
}

func TestIngressHalvingIsBounded(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	addr := mustServe(t, func(*chipingress.CloudEventBatch) (*chipingress.PublishResponse, error) {
		calls.Add(1)
		return nil, status.Error(codes.InvalidArgument, "never")
	})
	s := mustIngress(t, addr, nil)
	items := sequence("t", 1000, 0)
	for sends := 1; len(items) > 0; sends++ {
		if sends > 30 {
			t.Fatalf("%d items left after %d sends", len(items), sends)
		}
		calls.Store(0)
		results := mustSend(t, s, items)
		if got := calls.Load(); got > maxIngressCalls+1 {
			t.Fatalf("%d calls in one Send", got)
		}
		var left []pipeline.Item
		for i, r := range results {
			if r.Verdict == pipeline.Retry {
				left = append(left, items[i])
			}
		}
		if len(left) == len(items) {
			t.Fatal("a Send got nowhere")
		}
		wantAll(t, results[:len(items)-len(left)], pipeline.Refused)
		items = left
	}
}

func TestIngressSplitsWhatIsTooLarge(t *testing.T) {
	t.Parallel()
	// The server's own limit, not an imitation.
	e, _ := endpointtest.Start(t, func(c *endpoint.Config) { c.MaxMessageBytes = 64 << 10 })
	reader := metric.NewManualReader()
	s := mustIngress(t, e.Addr(), func(c *IngressConfig) {
		c.Meter = metric.NewMeterProvider(metric.WithReader(reader)).Meter("test")
	})
	var events []*pb.CloudEvent
	for i := range 200 {
		payload := 1000
		if i == 66 {
			payload = 100_000
		}
		events = append(events, newCE("t", i+1, payload))
	}
	results := mustSend(t, s, itemsOf(newBatch(1, events...)))
	if r := results[66]; r.Verdict != pipeline.Refused || r.Code != "TOO_LARGE" || !strings.Contains(r.Reason, "larger than max") {
		t.Errorf("the large event: %+v", r)
	}
	if got := count(results, pipeline.Delivered); got != 199 {
		t.Errorf("%d delivered, want 199", got)
	}
	if got := seqnums(e.Records()); len(got) != 199 || !slices.IsSorted(got) {
		t.Errorf("the endpoint has %v", got)
	}
	if got := mustSum(t, reader, "waybill.sink.splits"); got < 3 {
		t.Errorf("%d splits counted", got)
	}
}

func TestIngressKnowsTooLargeFromOverload(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]ingressFault{
		"grpc: received message larger than max (10 vs. 5)":                       ingressTooLarge,
		"grpc: received message after decompression larger than max 5":            ingressTooLarge,
		"trying to send message larger than max (10 vs. 5)":                       ingressTooLarge,
		"Received message larger than max (17777780 vs. 4194304)":                 ingressTooLarge,
		"gRPC message exceeds maximum size 4194304: 20007194":                     ingressTooLarge,
		"Received message exceeds the maximum configured message size.":           ingressTooLarge,
		"Error, decoded message length too large: found 9 bytes, the limit is: 4": ingressTooLarge,
		"overloaded; try again later":                                             ingressTryAgain,
		"message quota exceeded":                                                  ingressTryAgain,
		"queue larger than max":                                                   ingressTryAgain,
		"":                                                                        ingressTryAgain,
	} {
		for _, code := range []codes.Code{codes.ResourceExhausted, codes.OutOfRange} {
			if got := classifyIngress(fmt.Errorf("wrapped: %w", status.Error(code, text))); got != want {
				t.Errorf("%v %q: %d, want %d", code, text, got, want)
			}
		}
		if got := classifyIngress(status.Error(codes.Internal, text)); got != ingressTryAgain {
			t.Errorf("INTERNAL %q: %d", text, got)
		}
	}
	if got := classifyIngress(errors.New("plain")); got != ingressTryAgain {
		t.Errorf("an error without a status: %d", got)
	}
}

func TestIngressNeverRefusesUnderOverload(t *testing.T) {
	t.Parallel()
	e, _ := endpointtest.Start(t, nil)
	mustBehave(t, e, func(b *endpoint.Behaviour) { b.Overload = true })
	s := mustIngress(t, e.Addr(), nil)
	for _, n := range []int{1, 10} {
		if results, err := s.Send(t.Context(), 0, sequence("t", n, 0)); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("%d events: %v, %v", n, results, err)
		}
	}
	mustBehave(t, e, func(*endpoint.Behaviour) {})
	wantAll(t, mustSend(t, s, sequence("t", 10, 0)), pipeline.Delivered)
}

// TestIngressGivesUpOnWhatStaysUnknown: only while the endpoint takes other events.
func TestIngressGivesUpOnWhatStaysUnknown(t *testing.T) {
	t.Parallel()
	e, _ := endpointtest.Start(t, nil)
	mustBehave(t, e, func(b *endpoint.Behaviour) { b.RefuseType, b.RefuseCode = "odd", "UNKNOWN" })
	const limit = 300 * time.Millisecond
	s := mustIngress(t, e.Addr(), func(c *IngressConfig) { c.UnknownFor = limit })
	odd, even := sequence("odd", 1, 0), sequence("even", 1, 0)
	start := time.Now()
	for time.Since(start) < 2*limit { // nothing else is delivered
		wantAll(t, mustSend(t, s, odd), pipeline.Retry)
	}
	mustBehave(t, e, func(b *endpoint.Behaviour) { b.Down = true })
	if _, err := s.Send(t.Context(), 0, odd); err == nil {
		t.Fatal("a Send to an endpoint that is down succeeded")
	}
	mustBehave(t, e, func(b *endpoint.Behaviour) { b.RefuseType, b.RefuseCode = "odd", "UNKNOWN" })

	var verdict pipeline.Result
	for deadline := time.Now().Add(time.Minute); verdict.Verdict == pipeline.Retry; {
		if time.Now().After(deadline) {
			t.Fatal("the event is never refused")
		}
		if _, err := s.Send(t.Context(), 1, even); err != nil {
			t.Fatal(err)
		}
		verdict = mustSend(t, s, odd)[0]
	}
	if verdict.Verdict != pipeline.Refused || verdict.Code != "UNKNOWN" || verdict.Reason == "" {
		t.Errorf("got %+v", verdict)
	}
	if len(s.suspects) != 0 {
		t.Errorf("the sink still suspects %v", s.suspects)
	}
	fresh := sequence("odd", 2, 0)[1:]
	wantAll(t, mustSend(t, s, fresh), pipeline.Retry)
}

func TestIngressKeepsTryingWhatIsUnknown(t *testing.T) {
	t.Parallel()
	e, _ := endpointtest.Start(t, nil)
	mustBehave(t, e, func(b *endpoint.Behaviour) { b.RefuseType, b.RefuseCode = "odd", "UNKNOWN" })
	items := itemsOf(newBatch(1, newCE("odd", 1, 0), newCE("even", 1, 0)))
	for name, limit := range map[string]time.Duration{"for ever": 0, "not yet for long": time.Hour} {
		s := mustIngress(t, e.Addr(), func(c *IngressConfig) { c.UnknownFor = limit })
		for range 10 {
			results := mustSend(t, s, items)
			if results[0].Verdict != pipeline.Retry || results[1].Verdict != pipeline.Delivered {
				t.Fatalf("%s: got %+v", name, results)
			}
		}
	}
}

func TestIngressLostResponseIsRetried(t *testing.T) {
	t.Parallel()
	e, _ := endpointtest.Start(t, func(c *endpoint.Config) { c.Behaviour.FailEvery = 2 })
	s := mustIngress(t, e.Addr(), nil)
	first, second := sequence("t", 4, 0)[:2], sequence("t", 4, 0)[2:]
	wantAll(t, mustSend(t, s, first), pipeline.Delivered)
	if _, err := s.Send(t.Context(), 0, second); status.Code(err) != codes.Unavailable {
		t.Fatalf("got %v", err)
	}
	wantAll(t, mustSend(t, s, second), pipeline.Delivered)
	if stats := e.Stats(); stats.Doubles != 2 || stats.Inversions != 0 || stats.Received != 6 {
		t.Errorf("endpoint: %+v", stats)
	}
}

func TestIngressEndsWithItsTimeAndItsContext(t *testing.T) {
	t.Parallel()
	e, _ := endpointtest.Start(t, nil)
	mustBehave(t, e, func(b *endpoint.Behaviour) { b.DelayMS = 60_000 })
	quick := mustIngress(t, e.Addr(), func(c *IngressConfig) { c.Timeout = 50 * time.Millisecond })
	if _, err := quick.Send(t.Context(), 0, sequence("t", 1, 0)); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("got %v", err)
	}
	patient := mustIngress(t, e.Addr(), nil)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	start := time.Now()
	if _, err := patient.Send(ctx, 0, sequence("t", 1, 0)); status.Code(err) != codes.Canceled {
		t.Errorf("got %v", err)
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("Send took %v after its context ended", took)
	}
}

func TestIngressProbe(t *testing.T) {
	t.Parallel()
	e, stop := endpointtest.Start(t, nil)
	s := mustIngress(t, e.Addr(), func(c *IngressConfig) { c.Timeout = 30 * time.Second })
	if err := s.Probe(t.Context()); err != nil {
		t.Errorf("endpoint up: %v", err)
	}
	if answer, err := s.Ping(t.Context()); err != nil || answer != "pong" {
		t.Errorf("Ping: %q, %v", answer, err)
	}
	stop()
	if err := s.Probe(t.Context()); err != nil {
		t.Errorf("endpoint down: %v", err)
	}
	if _, err := s.Ping(t.Context()); err == nil {
		t.Error("Ping of an endpoint that is down succeeded")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Probe(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("context ended: %v", err)
	}
}

func TestIngressFindsAnEndpointThatComesBack(t *testing.T) {
	t.Parallel()
	e, stop := endpointtest.Start(t, nil)
	addr := e.Addr()
	s := mustIngress(t, addr, nil)
	wantAll(t, mustSend(t, s, sequence("t", 1, 0)), pipeline.Delivered)
	stop()
	if _, err := s.Send(t.Context(), 0, sequence("t", 1, 0)); status.Code(err) != codes.Unavailable {
		t.Fatalf("endpoint down: %v", err)
	}
	again, _ := endpointtest.Start(t, func(c *endpoint.Config) { c.Addr = addr })
	deadline := time.Now().Add(time.Minute)
	for {
		if _, err := s.Send(t.Context(), 0, sequence("t", 1, 0)); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("never connected again: %v", err)
		}
		time.Sleep(10 * time.Millisecond) // poll with a deadline
	}
	if got := again.Stats().Received; got != 1 {
		t.Errorf("%d received", got)
	}
}

func TestIngressLanesShareConnections(t *testing.T) {
	t.Parallel()
	e, _ := endpointtest.Start(t, nil)
	mustBehave(t, e, func(b *endpoint.Behaviour) { b.RefuseType, b.RefuseCode = "^lane3$", "UNKNOWN" })
	s := mustIngress(t, e.Addr(), func(c *IngressConfig) { c.Connections = 3; c.MaxRequestEvents = 10 })
	var wg sync.WaitGroup
	for lane := range 8 {
		wg.Go(func() {
			items := sequence(fmt.Sprintf("lane%d", lane), 100, 0)
			results, err := s.Send(t.Context(), lane, items)
			if err != nil {
				t.Errorf("lane %d: %v", lane, err)
			} else if got := count(results, pipeline.Delivered); got != 100 && lane != 3 {
				t.Errorf("lane %d: %d delivered", lane, got)
			}
		})
	}
	wg.Wait()
	if stats := e.Stats(); stats.Received != 700 || stats.Inversions != 0 {
		t.Errorf("endpoint: %d received, %d inversions", stats.Received, stats.Inversions)
	}
}

func TestIngressSendsHeaders(t *testing.T) {
	t.Parallel()
	var got metadata.MD
	addr := mustServeContext(t, func(ctx context.Context, b *chipingress.CloudEventBatch) (*chipingress.PublishResponse, error) {
		got, _ = metadata.FromIncomingContext(ctx)
		return success(b.Events), nil
	})
	s := mustIngress(t, addr, func(c *IngressConfig) {
		c.User, c.Password = "ann", "p:w"
		c.Headers = map[string]string{"x-include-nop-info": "true"}
	})
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", "00-1")
	if _, err := s.Send(ctx, 0, sequence("t", 1, 0)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"authorization": "Basic YW5uOnA6dw==", "x-include-nop-info": "true", "traceparent": "00-1",
	} {
		if values := got.Get(name); !slices.Equal(values, []string{want}) {
			t.Errorf("%s is %q, want %q", name, values, want)
		}
	}
}

func TestIngressTLS(t *testing.T) {
	t.Parallel()
	certFile, keyFile := mustCertificate(t)
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pemBytes, err := os.ReadFile(certFile)
	if err != nil || !pool.AppendCertsFromPEM(pemBytes) {
		t.Fatal("no certificate", err)
	}
	addr := mustServe(t, func(b *chipingress.CloudEventBatch) (*chipingress.PublishResponse, error) {
		return success(b.Events), nil
	}, grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
	})))
	mutual := IngressTLS{Enabled: true, CAFile: certFile, CertFile: certFile, KeyFile: keyFile}
	s := mustIngress(t, addr, func(c *IngressConfig) { c.TLS = mutual })
	wantAll(t, mustSend(t, s, sequence("t", 2, 0)), pipeline.Delivered)

	for name, settings := range map[string]IngressTLS{
		"no TLS":          {},
		"system's CAs":    {Enabled: true, CertFile: certFile, KeyFile: keyFile},
		"other name":      {Enabled: true, CAFile: certFile, CertFile: certFile, KeyFile: keyFile, ServerName: "other.test"},
		"no client's own": {Enabled: true, CAFile: certFile},
	} {
		s := mustIngress(t, addr, func(c *IngressConfig) { c.TLS = settings })
		if _, err := s.Send(t.Context(), 0, sequence("t", 1, 0)); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// mustCertificate writes a certificate for 127.0.0.1 that signs itself.
func mustCertificate(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

func TestIngressConfigIsValidated(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		mention string
		change  func(*IngressConfig)
	}{
		{"Name", func(c *IngressConfig) { c.Name = "" }},
		{"Endpoint", func(c *IngressConfig) { c.Endpoint = "" }},
		{"Endpoint", func(c *IngressConfig) { c.Endpoint = "host" }},
		{"TLS.Enabled", func(c *IngressConfig) { c.Endpoint = "https://host:443" }},
		{"Endpoint", func(c *IngressConfig) { c.Endpoint = "dns:///%zz" }},
		{"MaxRequestBytes", func(c *IngressConfig) { c.MaxRequestBytes = 0 }},
		{"MaxRequestEvents", func(c *IngressConfig) { c.MaxRequestEvents = 0 }},
		{"Linger", func(c *IngressConfig) { c.Linger = -1 }},
		{"Timeout", func(c *IngressConfig) { c.Timeout = 0 }},
		{"KeepaliveTime", func(c *IngressConfig) { c.KeepaliveTime = time.Second }},
		{"KeepaliveTimeout", func(c *IngressConfig) { c.KeepaliveTimeout = 0 }},
		{"Connections", func(c *IngressConfig) { c.Connections = 0 }},
		{"Connections", func(c *IngressConfig) { c.Connections = 65 }},
		{"UnknownFor", func(c *IngressConfig) { c.UnknownFor = -1 }},
		{"Log", func(c *IngressConfig) { c.Log = nil }},
		{"Password", func(c *IngressConfig) { c.Password = "p" }},
		{"colon", func(c *IngressConfig) { c.User = "a:b" }},
		{"Headers", func(c *IngressConfig) { c.Headers = map[string]string{"X-Upper": "1"} }},
		{"Headers", func(c *IngressConfig) { c.Headers = map[string]string{"": "1"} }},
		{"Headers", func(c *IngressConfig) { c.Headers = map[string]string{"grpc-timeout": "1"} }},
		{"Headers", func(c *IngressConfig) { c.Headers = map[string]string{"x-bin": "1"} }},
		{"Headers", func(c *IngressConfig) { c.Headers = map[string]string{"x": "a\nb"} }},
		{"Headers", func(c *IngressConfig) {
			c.User, c.Headers = "ann", map[string]string{"authorization": "Bearer x"}
		}},
		{"TLS", func(c *IngressConfig) { c.TLS.CAFile = "ca.pem" }},
		{"TLS.KeyFile", func(c *IngressConfig) { c.TLS = IngressTLS{Enabled: true, CertFile: "c"} }},
		{"TLS.CAFile", func(c *IngressConfig) { c.TLS = IngressTLS{Enabled: true, CAFile: "absent.pem"} }},
		{"TLS.CAFile", func(c *IngressConfig) { c.TLS = IngressTLS{Enabled: true, CAFile: empty} }},
		{"TLS.CertFile", func(c *IngressConfig) { c.TLS = IngressTLS{Enabled: true, CertFile: empty, KeyFile: empty} }},
	} {
		cfg := DefaultIngressConfig()
		cfg.Endpoint = "127.0.0.1:1"
		c.change(&cfg)
		if s, err := NewIngress(cfg); err == nil || !strings.Contains(err.Error(), c.mention) {
			t.Errorf("want an error about %s, got %v, %v", c.mention, s, err)
		}
	}
	for _, target := range []string{"host:1", "[::1]:1", "dns:///host:1", "unix:/tmp/socket"} {
		cfg := DefaultIngressConfig()
		cfg.Endpoint, cfg.KeepaliveTime, cfg.KeepaliveTimeout = target, 0, 0
		if err := cfg.Validate(); err != nil {
			t.Errorf("%s: %v", target, err)
		}
	}
}

func TestIngressConfigLogsNoSecret(t *testing.T) {
	t.Parallel()
	cfg := DefaultIngressConfig()
	cfg.User, cfg.Password, cfg.Headers = "ann", "secret1", map[string]string{"x-token": "secret2"}
	var out bytes.Buffer
	slog.New(slog.NewTextHandler(&out, nil)).Info("configuration", "ingress", cfg)
	if text := out.String(); strings.Contains(text, "secret") || !strings.Contains(text, "x-token") {
		t.Errorf("logged %s", text)
	}
}

func TestIngressReasonFitsAReceipt(t *testing.T) {
	t.Parallel()
	long := ingressReason(strings.Repeat("é", maxIngressReason))
	if len(long) > maxIngressReason || !strings.HasSuffix(long, "é") {
		t.Errorf("%d bytes, ends in %q", len(long), long[len(long)-3:])
	}
	if got := ingressReason("a\x00b\xff"); got != "a\uFFFDb\uFFFD" {
		t.Errorf("got %q", got)
	}
}

func TestIngressMetrics(t *testing.T) {
	t.Parallel()
	e, _ := endpointtest.Start(t, nil)
	reader := metric.NewManualReader()
	s := mustIngress(t, e.Addr(), func(c *IngressConfig) {
		c.MaxRequestEvents = 4
		c.Meter = metric.NewMeterProvider(metric.WithReader(reader)).Meter("test")
	})
	items := sequence("t", 10, 0)
	wantAll(t, mustSend(t, s, items), pipeline.Delivered)
	for name, want := range map[string]int64{
		"waybill.sink.requests":       3,
		"waybill.sink.request.events": 10,
		"waybill.sink.request.size":   int64(ingressRequest(items).size()),
	} {
		if got := mustSum(t, reader, name); got != want {
			t.Errorf("%s is %d, want %d", name, got, want)
		}
	}
}

func TestIngressCloseEndsEverything(t *testing.T) {
	e, stop := endpointtest.Start(t, nil)
	defer stop()
	before := goleak.IgnoreCurrent()
	cfg := DefaultIngressConfig()
	cfg.Endpoint, cfg.Connections = e.Addr(), 2
	s, err := NewIngress(cfg)
	if err != nil {
		t.Fatal(err)
	}
	wantAll(t, mustSend(t, s, sequence("t", 1, 0)), pipeline.Delivered)
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if _, err := s.Send(t.Context(), 0, sequence("t", 1, 0)); err == nil {
		t.Error("Send after Close succeeded")
	}
	stop() // the endpoint's side of the connection ends with it
	goleak.VerifyNone(t, before)
}

func BenchmarkIngressSend(b *testing.B) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	server := grpc.NewServer()
	chipingress.RegisterChipIngressServer(server, script{publish: func(_ context.Context, batch *chipingress.CloudEventBatch) (*chipingress.PublishResponse, error) {
		return success(batch.Events), nil
	}})
	go server.Serve(listener)
	defer server.Stop()
	cfg := DefaultIngressConfig()
	cfg.Endpoint = listener.Addr().String()
	s, err := NewIngress(cfg)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	items := sequence("t", 1000, 256)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Send(context.Background(), 0, items); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N*len(items))/b.Elapsed().Seconds(), "events/s")
}
