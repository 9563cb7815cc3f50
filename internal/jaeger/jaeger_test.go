package jaeger

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/waybillhq/waybill/internal/collector"
)

const shortTrace, longTrace = "00000000000000004bf92f3577b34da6", "a3ce929d0e0e47364bf92f3577b34da6"

// fake is a server that answers as it is told, and notes what it was asked.
type fake struct {
	*httptest.Server
	asked  []*url.URL
	status int
	body   string
}

func newFake(t *testing.T, body string) *fake {
	t.Helper()
	f := &fake{status: http.StatusOK, body: body}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u := *r.URL
		if user, password, ok := r.BasicAuth(); ok {
			u.User = url.UserPassword(user, password)
		}
		f.asked = append(f.asked, &u)
		w.WriteHeader(f.status)
		_, _ = io.WriteString(w, f.body)
	}))
	t.Cleanup(f.Close)
	return f
}

func mustClient(t *testing.T, address string) *Client {
	t.Helper()
	c, err := NewClient(address)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mustRead(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// What Jaeger says of a trace is what was sent to it.
func TestATraceIsRead(t *testing.T) {
	f := newFake(t, mustRead(t, "trace.json"))
	spans, err := mustClient(t, f.URL).Trace(t.Context(), longTrace)
	if err != nil {
		t.Fatal(err)
	}
	if got := f.asked[0]; got.Path != "/api/traces/"+longTrace || got.Query().Get("raw") != "true" {
		t.Errorf("asked for %v", got)
	}
	start := time.UnixMicro(1800000000000123)
	want := collector.Span{
		TraceID: shortTrace, ID: "00f067aa0ba902b7", Parent: "00000000000005c1", Name: "send ingress", Service: "waybill-forwarder", Instance: "forwarder-1",
		Kind: tracepb.Span_SPAN_KIND_CLIENT, Start: start, End: start.Add(2456 * time.Microsecond), Failure: "refused",
		Links: []collector.Link{{TraceID: longTrace, ID: "d75597dee50b0cac"}},
		Attributes: map[string]string{
			"otel.scope.name": "github.com/waybillhq/waybill/pipeline", "cloudevents.event_id": "order 7",
			"messaging.batch.message_count": "4096", "large": "12345678901", "part": "0.25",
		},
	}
	if !reflect.DeepEqual(spans[0], want) {
		t.Errorf("got  %+v\nwant %+v", spans[0], want)
	}
	if s := spans[1]; len(spans) != 2 || s.ID != want.Parent || s.Parent != "" || s.Service != "shop" || s.Failure != "" || s.Took() != 9*time.Millisecond {
		t.Errorf("%d spans, of which the second is %+v", len(spans), s)
	}
}

// A server passes on what any program sent.
func TestSpansThatCannotBe(t *testing.T) {
	f := newFake(t, `{"data":[{"traceID":"1","spans":[{"traceID":"1","spanID":"1","startTime":1000,"duration":-5000},
		{"traceID":"1","spanID":"2","startTime":1000,"duration":9223372036854775807}]}]}`)
	spans, err := mustClient(t, f.URL).Trace(t.Context(), "1")
	if err != nil || len(spans) != 2 || spans[0].Took() != 0 || spans[1].Took() < 200*365*24*time.Hour {
		t.Errorf("%+v, %v", spans, err)
	}
}

func TestASearchIsWrittenAsJaegerReadsIt(t *testing.T) {
	f := newFake(t, mustRead(t, "trace.json"))
	base := strings.Replace(f.URL, "http://", "http://reader:geheim@", 1) + "/select/jaeger/"
	client := mustClient(t, base)
	traces, err := client.Find(t.Context(), Search{
		Service: "waybill-ingest", Attribute: "cloudevents.event_id", Value: `order "7"&more`,
		Since: time.UnixMicro(1_700_000_000_000_001), Until: time.UnixMicro(1_700_000_000_000_002), Limit: 9,
	})
	if err != nil || len(traces) != 1 || len(traces[0]) != 2 {
		t.Fatalf("%v, %v", traces, err)
	}
	asked := f.asked[0]
	if user := asked.User; asked.Path != "/select/jaeger/api/traces" || user == nil || user.String() != "reader:geheim" {
		t.Errorf("asked for %v", asked)
	}
	for name, want := range map[string]string{
		"service": "waybill-ingest", "tags": `{"cloudevents.event_id":"order \"7\"\u0026more"}`,
		"start": "1700000000000001", "end": "1700000000000002", "limit": "9",
	} {
		if got := asked.Query()[name]; !slices.Equal(got, []string{want}) {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if strings.Contains(client.String(), "geheim") {
		t.Errorf("%s has the password in it", client)
	}
}

func TestErrorsOfAServer(t *testing.T) {
	for _, c := range []struct {
		status int
		body   string
		says   string
		none   bool // there is no such trace
	}{
		{404, `{"data":null,"total":0,"limit":0,"offset":0,"errors":[{"code":404,"msg":"trace not found"}]}`, "no such trace", true},
		{404, "404 page not found\n", "404 page not found", false}, // not this API
		{500, `{"data":null,"errors":[{"code":500,"msg":"storage is down"}]}`, "storage is down", false},
		{401, "who are you?", "who are you?", false},
		{200, "<!doctype html>", "not that of Jaeger's query API", false},
		{200, `{"data":[],"errors":null}`, "no such trace", true},
	} {
		f := newFake(t, c.body)
		f.status = c.status
		_, err := mustClient(t, f.URL).Trace(t.Context(), longTrace)
		if err == nil || !strings.Contains(err.Error(), c.says) || errors.Is(err, ErrNoTrace) != c.none {
			t.Errorf("%d %s: %v", c.status, c.body, err)
		}
		if !c.none && (err == nil || !strings.Contains(err.Error(), strings.TrimPrefix(f.URL, "http://"))) {
			t.Errorf("%v does not name the server", err)
		}
	}
	gone := httptest.NewServer(nil)
	gone.Close()
	for _, secret := range []string{"reader:geheim@", "geheim@"} { // a user alone may be a token
		c := mustClient(t, strings.Replace(gone.URL, "http://", "http://"+secret, 1))
		if _, err := c.Services(t.Context()); err == nil || !strings.Contains(err.Error(), "refused") || strings.Contains(err.Error()+c.String(), "geheim") {
			t.Errorf("%s: %v", c, err)
		}
	}
	for _, address := range []string{"jaeger:16686", "ftp://jaeger", "http://", "http://reader:geheim@[", "ftp://geheim@jaeger", "%"} {
		if _, err := NewClient(address); err == nil || !strings.Contains(err.Error(), "http://jaeger:16686") || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%s: %v", address, err)
		}
	}
}

// source is a store with two traces, of which the second is the newer one.
func source() *collector.Recent {
	at := time.UnixMicro(1_800_000_000_000_000)
	r := collector.NewRecent(100)
	r.Add([]collector.Span{
		{
			TraceID: shortTrace, ID: "0000000000000001", Name: "accept events", Service: "waybill-ingest", Instance: "ingest-1",
			Kind: tracepb.Span_SPAN_KIND_SERVER, Start: at, End: at.Add(2 * time.Millisecond), Attributes: map[string]string{"k": "1", "n": "x"},
		},
		{
			TraceID: shortTrace, ID: "0000000000000002", Parent: "0000000000000001", Name: "commit events", Service: "waybill-ingest", Instance: "ingest-2",
			Kind: tracepb.Span_SPAN_KIND_CLIENT, Start: at.Add(time.Millisecond), End: at.Add(2 * time.Millisecond), Failure: "failed",
			Attributes: map[string]string{"k": "2"}, Links: []collector.Link{{TraceID: longTrace, ID: "00000000000000aa"}},
		},
		{
			TraceID: longTrace, ID: "0000000000000003", Name: "accept events", Service: "other",
			Start: at.Add(time.Second), End: at.Add(time.Second), Attributes: map[string]string{"k": "1"},
		},
	})
	return r
}

// What is kept comes out of the client as it went in.
func TestClientAndHandlerUnderstandEachOther(t *testing.T) {
	kept := source()
	server := httptest.NewServer(Handler(kept))
	defer server.Close()
	client := mustClient(t, server.URL)
	for _, id := range []string{shortTrace, longTrace} {
		if got, err := client.Trace(t.Context(), id); err != nil || !reflect.DeepEqual(got, kept.Trace(id)) {
			t.Errorf("got  %+v, %v\nwant %+v", got, err, kept.Trace(id))
		}
	}
	if got, err := client.Trace(t.Context(), "4BF92F3577B34DA6"); err != nil || len(got) != 2 { // as Jaeger prints it
		t.Errorf("%v, %v", got, err)
	}
	if _, err := client.Trace(t.Context(), "1"); !errors.Is(err, ErrNoTrace) {
		t.Errorf("a trace that is not there: %v", err)
	}
	if got, err := client.Services(t.Context()); err != nil || !slices.Equal(got, []string{"other", "waybill-ingest"}) {
		t.Errorf("%v, %v", got, err)
	}
	at := time.UnixMicro(1_800_000_000_000_000)
	for _, c := range []struct {
		search Search
		traces []string
	}{
		{Search{"waybill-ingest", "k", "1", at, at, 5}, []string{shortTrace}},
		{Search{"waybill-ingest", "k", "2", at, at, 5}, nil}, // that span began later
		{Search{"waybill-ingest", "k", "2", at, at.Add(time.Hour), 5}, []string{shortTrace}},
		{Search{"waybill-ingest", "k", "3", at, at.Add(time.Hour), 5}, nil},
		{Search{"other", "k", "1", at, at.Add(time.Hour), 5}, []string{longTrace}},
		{Search{"other", "k", "1", at.Add(2 * time.Second), at.Add(time.Hour), 5}, nil},
	} {
		var got []string
		found, err := client.Find(t.Context(), c.search)
		if err != nil {
			t.Fatal(err)
		}
		for _, spans := range found {
			got = append(got, spans[0].TraceID)
		}
		if !slices.Equal(got, c.traces) {
			t.Errorf("%+v: %v, want %v", c.search, got, c.traces)
		}
	}
}

// Other parameters of Jaeger's, which dashboards use.
func TestSearchParameters(t *testing.T) {
	server := httptest.NewServer(Handler(source()))
	defer server.Close()
	const all = "&start=1&end=1900000000000000"
	for _, c := range []struct {
		query  string
		status int
		says   string // of which there is one
	}{
		{"service=waybill-ingest" + all, 200, `"traceID":"` + shortTrace + `","spans"`},
		{"service=waybill-ingest&operation=commit+events&tag=k:2" + all, 200, `"traceID":"` + shortTrace + `","spans"`},
		{"service=waybill-ingest&tags={%22error%22:%22true%22}" + all, 200, `"traceID":"` + shortTrace + `","spans"`},
		{"service=waybill-ingest&operation=accept+events&tags={%22error%22:%22true%22}" + all, 200, `"data":[]`},
		{"service=waybill-ingest&minDuration=3ms" + all, 200, `"data":[]`},
		{"service=waybill-ingest&maxDuration=1us" + all, 200, `"data":[]`},
		{"service=waybill-ingest&limit=0" + all, 200, `"data":[]`},
		{"operation=x", 400, "'service' is required"},
		{"service=x&tags=k", 400, "'tags'"},
		{"service=x&tag=k", 400, "'tag'"},
		{"service=x&start=yesterday", 400, "'start'"},
		{"service=x&limit=all", 400, "'limit'"},
	} {
		response, err := http.Get(server.URL + "/api/traces?" + c.query)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if err != nil || response.StatusCode != c.status || strings.Count(string(body), c.says) != 1 {
			t.Errorf("%s: %s %s, %v; want %d and %s once", c.query, response.Status, body, err, c.status, c.says)
		}
	}
}
