package producer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/waybillhq/waybill/internal/endpoint"
	"github.com/waybillhq/waybill/internal/endpoint/endpointtest"
	"github.com/waybillhq/waybill/internal/intake"
	"github.com/waybillhq/waybill/pipeline"
)

func text(s string) *pb.CloudEventAttributeValue {
	return &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeString{CeString: s}}
}

func event(id string) *pb.CloudEvent {
	return &pb.CloudEvent{
		Id: id, Source: "/s", Type: "t", SpecVersion: "1.0",
		Attributes: map[string]*pb.CloudEventAttributeValue{"datacontenttype": text("application/json")},
		Data:       &pb.CloudEvent_BinaryData{BinaryData: []byte(`{"a": "<é>", "n":9007199254740993}`)},
	}
}

func TestAppendJSONKeepsEverything(t *testing.T) {
	attributes := func(contentType string) map[string]*pb.CloudEventAttributeValue {
		return map[string]*pb.CloudEventAttributeValue{
			"datacontenttype": text(contentType),
			"time":            {Attr: &pb.CloudEventAttributeValue_CeTimestamp{CeTimestamp: timestamppb.New(time.Unix(1, 5e8))}},
			"flag":            {Attr: &pb.CloudEventAttributeValue_CeBoolean{CeBoolean: true}},
			"number":          {Attr: &pb.CloudEventAttributeValue_CeInteger{CeInteger: -7}},
			"raw":             {Attr: &pb.CloudEventAttributeValue_CeBytes{CeBytes: []byte{0, 1}}},
		}
	}
	common := `"flag":true,"id":"1","number":-7,"raw":"AAE=","source":"/s","specversion":"1.0","time":"1970-01-01T00:00:01.5Z","type":"t"`
	for _, test := range []struct {
		contentType string
		ce          *pb.CloudEvent
		want        string
	}{
		{"application/json", event("1"), `{"datacontenttype":"application/json",` + common + `,"data":{"a": "<é>", "n":9007199254740993}}`},
		{"application/json", &pb.CloudEvent{Data: &pb.CloudEvent_BinaryData{BinaryData: []byte("{")}}, `{"data_base64":"ew==","datacontenttype":"application/json",` + common + `}`},
		{"text/plain", &pb.CloudEvent{Data: &pb.CloudEvent_TextData{TextData: "a\nb"}}, `{"data":"a\nb","datacontenttype":"text/plain",` + common + `}`},
		{"application/protobuf", &pb.CloudEvent{Data: &pb.CloudEvent_ProtoData{ProtoData: &anypb.Any{Value: []byte{0, 1}}}}, `{"data_base64":"AAE=","datacontenttype":"application/protobuf",` + common + `}`},
		{"text/plain", &pb.CloudEvent{}, `{"datacontenttype":"text/plain",` + common + `}`},
	} {
		test.ce.Id, test.ce.Source, test.ce.Type, test.ce.SpecVersion = "1", "/s", "t", "1.0"
		test.ce.Attributes = attributes(test.contentType)
		got, err := AppendJSON([]byte("x"), test.ce)
		if err != nil || string(got) != "x"+test.want {
			t.Errorf("%v\n got %s\nwant x%s", err, got, test.want)
		}
	}
}

// In binary mode each attribute is a header, with the text that CloudEvents has for its type.
func TestBinaryMode(t *testing.T) {
	h, err := NewHTTP("http://127.0.0.1:1", true)
	if err != nil {
		t.Fatal(err)
	}
	ce := event("é 1")
	ce.Attributes["time"] = &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeTimestamp{CeTimestamp: timestamppb.New(time.Unix(1, 5e8))}}
	ce.Attributes["flag"] = &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeBoolean{CeBoolean: true}}
	ce.Attributes["number"] = &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeInteger{CeInteger: -7}}
	ce.Attributes["raw"] = &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeBytes{CeBytes: []byte{0, 1}}}
	request, err := h.request(t.Context(), []*pb.CloudEvent{ce})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"Ce-Specversion": "1.0", "Ce-Id": "%C3%A9%201", "Ce-Source": "/s", "Ce-Type": "t", "Content-Type": "application/json",
		"Ce-Time": "1970-01-01T00:00:01.5Z", "Ce-Flag": "true", "Ce-Number": "-7", "Ce-Raw": "AAE=",
	} {
		if got := request.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if data, err := io.ReadAll(request.Body); err != nil || string(data) != `{"a": "<é>", "n":9007199254740993}` {
		t.Errorf("the body is %s, %v", data, err)
	}
}

// store accepts, or answers what it is told to.
type store struct {
	mu     sync.Mutex
	ids    []string
	answer error
}

func (s *store) Submit(events []pipeline.Event) <-chan error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range events {
		if s.answer == nil {
			s.ids = append(s.ids, e.ID)
		}
	}
	out := make(chan error, 1)
	out <- s.answer
	return out
}

func newIngest(t *testing.T, s *store) string {
	t.Helper()
	in, err := intake.New(intake.DefaultConfig(), s)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(intake.NewHTTP(in))
	t.Cleanup(server.Close)
	return server.URL
}

func TestHTTPAgainstIngest(t *testing.T) {
	for _, binary := range []bool{false, true} {
		s := &store{}
		h, err := NewHTTP(newIngest(t, s), binary)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		if err := h.Send(t.Context(), []*pb.CloudEvent{event("one %é")})[0]; err != nil {
			t.Errorf("binary=%v: %v", binary, err)
		}
		bad := event("bad")
		bad.Type = ""
		errs := h.Send(t.Context(), []*pb.CloudEvent{event("two"), bad, event("three")})
		var refused *RefusedError
		if errs[0] != nil || errs[2] != nil || !errors.As(errs[1], &refused) || !strings.HasPrefix(refused.Reason, "type: ") {
			t.Errorf("binary=%v: %v", binary, errs)
		}
		if err := h.Send(t.Context(), []*pb.CloudEvent{bad})[0]; !errors.As(err, &refused) || !strings.HasPrefix(refused.Reason, "type: ") {
			t.Errorf("binary=%v: %v", binary, err)
		}
		if got := strings.Join(s.ids, ","); got != "one %é,two,three" {
			t.Errorf("binary=%v: stored %s", binary, got)
		}
	}
}

func TestHTTPTellsWhatIsUnknown(t *testing.T) {
	for _, test := range []struct {
		answer  error
		unknown bool
	}{
		{pipeline.ErrOverloaded, false},
		{pipeline.ErrUnavailable, false},
		{pipeline.ErrOutcomeUnknown, true},
	} {
		h, err := NewHTTP(newIngest(t, &store{answer: test.answer}), false)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		for _, events := range [][]*pb.CloudEvent{{event("1")}, {event("1"), event("2")}} {
			var again *TryAgainError
			if err := h.Send(t.Context(), events)[0]; !errors.As(err, &again) || again.Unknown != test.unknown || again.After <= 0 {
				t.Errorf("%v: %+v", test.answer, err)
			}
		}
	}
}

func TestHTTPWithoutServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	h, err := NewHTTP("http://"+addr, false)
	if err != nil {
		t.Fatal(err)
	}
	var again *TryAgainError
	if err := h.Send(t.Context(), []*pb.CloudEvent{event("1")})[0]; !errors.As(err, &again) || again.Unknown {
		t.Errorf("%+v", err)
	}
	// A server that hangs up may have stored what it read.
	hangUp := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	defer hangUp.Close()
	if h, err = NewHTTP(hangUp.URL, false); err != nil {
		t.Fatal(err)
	}
	if err := h.Send(t.Context(), []*pb.CloudEvent{event("1")})[0]; !errors.As(err, &again) || !again.Unknown {
		t.Errorf("%+v", err)
	}
}

func TestAnswerWithoutResults(t *testing.T) {
	answer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusMultiStatus)
		fmt.Fprint(w, `{"results":[{"index":0,"status":200},{"index":7,"status":200}]}`)
	}))
	defer answer.Close()
	h, err := NewHTTP(answer.URL, false)
	if err != nil {
		t.Fatal(err)
	}
	errs := h.Send(t.Context(), []*pb.CloudEvent{event("1"), event("2")})
	var again *TryAgainError
	if errs[0] != nil || !errors.As(errs[1], &again) || !again.Unknown {
		t.Error(errs)
	}
}

func TestAddresses(t *testing.T) {
	for _, bad := range []string{"", "127.0.0.1:8080", "ftp://x", "http://", "http://%"} {
		if _, err := NewHTTP(bad, false); err == nil {
			t.Errorf("%q passes", bad)
		}
	}
	for target, want := range map[string]string{
		"http://h:1": "http://h:1/v1/events", "http://h:1/": "http://h:1/v1/events", "https://h/other": "https://h/other",
	} {
		if h, err := NewHTTP(target, false); err != nil || h.url != want {
			t.Errorf("%s: %v, %v", target, h, err)
		}
	}
}

func TestGRPC(t *testing.T) {
	e, _ := endpointtest.Start(t, func(c *endpoint.Config) { c.Behaviour.RefuseType = "bad" })
	for _, stream := range []bool{false, true} {
		e.Reset()
		g, err := NewGRPC(e.Addr(), false, stream)
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		if err := g.Send(t.Context(), []*pb.CloudEvent{event("1")})[0]; err != nil {
			t.Errorf("stream=%v: %v", stream, err)
		}
		bad := event("3")
		bad.Type = "bad"
		errs := g.Send(t.Context(), []*pb.CloudEvent{event("2"), bad, event("4")})
		if errs[0] != nil || errs[2] != nil || errs[1] == nil || !strings.Contains(errs[1].Error(), "refused") {
			t.Errorf("stream=%v: %v", stream, errs)
		}
		if n := e.Stats().Received; n != 3 {
			t.Errorf("stream=%v: %d received", stream, n)
		}
	}
}

func TestGRPCTellsWhatIsUnknown(t *testing.T) {
	for _, test := range []struct {
		behaviour endpoint.Behaviour
		unknown   bool
	}{
		{endpoint.Behaviour{RefuseCode: "UNKNOWN", Overload: true}, false},
		{endpoint.Behaviour{RefuseCode: "UNKNOWN", FailEvery: 1}, true},
	} {
		e, _ := endpointtest.Start(t, func(c *endpoint.Config) { c.Behaviour = test.behaviour })
		g, err := NewGRPC(e.Addr(), false, false)
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		var again *TryAgainError
		if err := g.Send(t.Context(), []*pb.CloudEvent{event("1")})[0]; !errors.As(err, &again) || again.Unknown != test.unknown {
			t.Errorf("%+v: %+v", test.behaviour, err)
		}
	}
}

func TestReadStreamStatus(t *testing.T) {
	var again *TryAgainError
	var refused *RefusedError
	if err := readStreamStatus("OK"); err != nil {
		t.Error(err)
	}
	if err := readStreamStatus("INVALID_ARGUMENT: type: is missing"); !errors.As(err, &refused) || refused.Reason != "type: is missing" {
		t.Error(err)
	}
	if err := readStreamStatus("RESOURCE_EXHAUSTED: full"); !errors.As(err, &again) || again.Unknown {
		t.Error(err)
	}
	if err := readStreamStatus("UNAVAILABLE: cannot be stored; nothing was stored"); !errors.As(err, &again) || again.Unknown {
		t.Error(err)
	}
	if err := readStreamStatus("UNAVAILABLE: lost"); !errors.As(err, &again) || !again.Unknown {
		t.Error(err)
	}
}

// script answers each try with what is next in it, by event id.
type script struct {
	tries [][]string // the ids of each try
	at    []time.Time
	next  []map[string]error
}

func (s *script) Send(_ context.Context, events []*pb.CloudEvent) []error {
	var ids []string
	var errs []error
	for _, e := range events {
		ids = append(ids, e.Id)
		errs = append(errs, s.next[len(s.tries)][e.Id])
	}
	s.tries, s.at = append(s.tries, ids), append(s.at, time.Now())
	return errs
}

func TestSendUntil(t *testing.T) {
	lost := &TryAgainError{Unknown: true, Err: errors.New("lost")}
	full := &TryAgainError{After: 400 * time.Millisecond, Err: errors.New("full")}
	s := &script{next: []map[string]error{
		{"b": lost, "c": &RefusedError{"bad"}, "d": full},
		{"b": full},
		{},
	}}
	told := 0
	outcomes := SendUntil(t.Context(), s, []*pb.CloudEvent{event("a"), event("b"), event("c"), event("d")}, time.Minute,
		func(int, error) { told++ })
	if got, _ := json.Marshal(s.tries); string(got) != `[["a","b","c","d"],["b","d"],["b"]]` {
		t.Errorf("tries %s", got)
	}
	var refused *RefusedError
	if outcomes[0].Err != nil || outcomes[1].Err != nil || !errors.As(outcomes[2].Err, &refused) || outcomes[3].Err != nil {
		t.Error(outcomes)
	}
	if outcomes[1].Unknown != 1 || outcomes[3].Unknown != 0 || told != 2 {
		t.Errorf("%+v, told %d times", outcomes, told)
	}
	if pause := s.at[1].Sub(s.at[0]); pause < 400*time.Millisecond {
		t.Errorf("the server wanted to be left alone for 400 ms and was asked again after %v", pause)
	}
}

func TestSendUntilGivesUp(t *testing.T) {
	full := &TryAgainError{Err: errors.New("full")}
	s := &script{next: make([]map[string]error, 100)}
	for i := range s.next {
		s.next[i] = map[string]error{"a": full}
	}
	if out := SendUntil(t.Context(), s, []*pb.CloudEvent{event("a")}, 300*time.Millisecond, nil); !errors.Is(out[0].Err, full) || len(s.tries) < 2 {
		t.Errorf("%+v after %d tries", out, len(s.tries))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if out := SendUntil(ctx, s, []*pb.CloudEvent{event("a")}, time.Hour, nil); out[0].Err == nil {
		t.Error("an event that nobody accepted is accepted")
	}
}

// Whoever mistakes the address of one protocol for that of the other is told so at once.
func TestSendersKnowTheOtherProtocol(t *testing.T) {
	web := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(web.Close)
	webAddr := strings.TrimPrefix(web.URL, "http://")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	go func() { _ = server.Serve(l) }() // until it is stopped
	t.Cleanup(server.Stop)
	overGRPC, err := NewGRPC(webAddr, false, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = overGRPC.Close() })
	for _, test := range []struct {
		target string
		sender Sender
		want   string
	}{
		{"http://" + l.Addr().String(), nil, "speaks gRPC"},
		{"https://" + webAddr, nil, "has no TLS"},
		{webAddr, overGRPC, "speaks HTTP"},
	} {
		if test.sender == nil {
			h, err := NewHTTP(test.target, false)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(h.Close)
			test.sender = h
		}
		err := test.sender.Send(t.Context(), []*pb.CloudEvent{event("1")})[0]
		if refused := (*RefusedError)(nil); !errors.As(err, &refused) || !strings.Contains(refused.Reason, test.want) {
			t.Errorf("%s: %v; want that who answers %s", test.target, err, test.want)
		}
	}
}
