package main

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/proto"

	"github.com/waybillhq/waybill/internal/intake"
	"github.com/waybillhq/waybill/internal/producer"
	"github.com/waybillhq/waybill/pipeline"
)

// memory is an ingest's front over a slice.
type memory struct {
	mu     sync.Mutex
	events []*pb.CloudEvent
	refuse int // this many units first
	units  int
}

func (m *memory) Submit(events []pipeline.Event) <-chan error {
	m.mu.Lock()
	defer m.mu.Unlock()
	answer := make(chan error, 1)
	if m.refuse > 0 {
		m.refuse--
		answer <- pipeline.ErrUnavailable
		return answer
	}
	m.units++
	for _, e := range events {
		ce := new(pb.CloudEvent)
		if err := proto.Unmarshal(e.Encoded, ce); err != nil {
			panic(err) // the front has just encoded it
		}
		m.events = append(m.events, ce)
	}
	answer <- nil
	return answer
}

func (m *memory) ids() string {
	var ids []string
	for _, ce := range m.events {
		ids = append(ids, ce.Id)
	}
	return strings.Join(ids, ",")
}

func newIngest(t *testing.T, m *memory) string {
	t.Helper()
	in, err := intake.New(intake.DefaultConfig(), m)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(intake.NewHTTP(in))
	t.Cleanup(server.Close)
	return server.URL
}

func TestEmitFromFlags(t *testing.T) {
	m := &memory{}
	to := newIngest(t, m)
	r := command(t, nil, "emit", "--to", to, "--id=1", "--source=/a", "--type=b", "--subject=c", "--extension", "d=e",
		"--data=<f/>", "--content-type=text/xml")
	if r.failure != nil || r.out != "1 event accepted\n" || len(m.events) != 1 {
		t.Fatalf("%+v", r)
	}
	ce := m.events[0]
	attributes := ce.Attributes
	if ce.Id != "1" || ce.Source != "/a" || ce.Type != "b" || string(ce.GetBinaryData()) != "<f/>" ||
		attributes["subject"].GetCeString() != "c" || attributes["d"].GetCeString() != "e" ||
		attributes["datacontenttype"].GetCeString() != "text/xml" || attributes["time"] == nil {
		t.Errorf("%v", ce)
	}
}

func TestEmitMany(t *testing.T) {
	m := &memory{}
	r := command(t, nil, "emit", "--url", newIngest(t, m), "--count=25", "--batch=10") // an alias
	if r.failure != nil || r.out != "25 events accepted\n" || len(m.events) != 25 || m.units != 3 {
		t.Errorf("%+v, %d events in %d requests", r, len(m.events), m.units)
	}
	ids := strings.Split(m.ids(), ",")
	slices.Sort(ids)
	if len(slices.Compact(ids)) != 25 {
		t.Error("ids are used twice")
	}
	if last := string(m.events[24].GetBinaryData()); last != `{"n":25}` {
		t.Error(last)
	}
}

// Data that is given is sent, be it empty.
func TestEmitEmptyData(t *testing.T) {
	m := &memory{}
	r := command(t, nil, "emit", "--to", newIngest(t, m), "--data=", "--content-type=text/plain")
	if r.failure != nil || len(m.events) != 1 || m.events[0].GetBinaryData() == nil || len(m.events[0].GetBinaryData()) != 0 {
		t.Errorf("%+v, %v", r, m.events)
	}
}

func TestEmitTicks(t *testing.T) {
	m := &memory{}
	began := time.Now()
	r := command(t, nil, "emit", "--to", newIngest(t, m), "--count=3", "--every=50ms")
	if took := time.Since(began); r.failure != nil || len(m.events) != 3 || took < 100*time.Millisecond {
		t.Errorf("%+v, %d events in %v", r, len(m.events), took)
	}
}

func TestEmitDataFile(t *testing.T) {
	m := &memory{}
	path := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(path, []byte("{\"a\":\n1}"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := command(t, nil, "emit", "--to", newIngest(t, m), "--data-file", path)
	if r.failure != nil || string(m.events[0].GetBinaryData()) != "{\"a\":\n1}" {
		t.Errorf("%+v", r)
	}
}

const lines = `{"specversion":"1.0","id":"1","source":"/s","type":"t","data":{"a": 1}}

  {"specversion":"1.0","id":"2","source":"/s"}
no json
{"specversion":"1.0","id":"3","source":"/s","type":"t","ext":1.5}
[]
{"specversion":"1.0","id":"4","source":"/s","type":"t","data_base64":7}
{"specversion":"1.0","id":"5","source":"/s","type":"t"}`

func TestEmitLines(t *testing.T) {
	m := &memory{}
	r := command(t, strings.NewReader(lines), "emit", "-", "--to", newIngest(t, m))
	mustFail(t, r, "5 events not accepted")
	if m.ids() != "1,5" || string(m.events[0].GetBinaryData()) != `{"a": 1}` {
		t.Errorf("sent %v", m.events)
	}
	want := []string{"line 3: type: ", "line 4: ", "line 5: ext: ", "line 6: event: ", "line 7: data_base64: "}
	got := strings.Split(strings.TrimSpace(r.err), "\n")
	if len(got) != len(want) || r.out != "2 events accepted\n" {
		t.Fatalf("%q, %q", got, r.out)
	}
	for i := range want {
		if !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("%q does not begin with %q", got[i], want[i])
		}
	}
}

// An event that only the server refuses is named by its line too.
func TestEmitLineThatTheServerRefuses(t *testing.T) {
	m := &memory{}
	large := `{"specversion":"1.0","id":"2","source":"/s","type":"t","data":"` + strings.Repeat("x", 2<<20) + `"}`
	input := strings.Join([]string{strings.Split(lines, "\n")[0], large}, "\n")
	r := command(t, strings.NewReader(input), "emit", "-", "--to", newIngest(t, m))
	mustFail(t, r, "1 event not accepted")
	if m.ids() != "1" || !strings.Contains(r.err, "line 2: refused: ") {
		t.Errorf("sent %s: %q", m.ids(), r.err)
	}
}

func TestEmitTriesAgain(t *testing.T) {
	m := &memory{refuse: 1}
	r := command(t, nil, "emit", "--to", newIngest(t, m), "--id=1")
	if r.failure != nil || m.ids() != "1" || !strings.Contains(r.err, "1 event to be sent again: 503") || !strings.Contains(r.err, "it goes on, after ") {
		t.Errorf("%+v", r)
	}
	m.refuse = 1000
	began := time.Now()
	r = command(t, nil, "emit", "--to", newIngest(t, m), "--retry-for=0s")
	mustFail(t, r, "1 event not accepted")
	if time.Since(began) > 30*time.Second {
		t.Error("it went on trying")
	}
}

// Where nobody takes events that is said once, with what to do, and not at each try nor of each event.
func TestEmitWithoutAnIngest(t *testing.T) {
	for _, c := range []struct{ flag, tried, remedy string }{
		{"--to=http://127.0.0.1:1", "connect to an ingest at http://127.0.0.1:1: connection refused; ", "(`make run` or `waybill dev` starts a whole system), or name another with --to (WAYBILL_TO)"},
		{"--to=127.0.0.1:1", "connect to an ingest at 127.0.0.1:1: connection refused; ", "--to (WAYBILL_TO)"},
		{"--outbox=postgres://me:geheim@127.0.0.1:1/x", "connect to Postgres at 127.0.0.1:1, database x, as user me: connection refused; ", "--outbox (WAYBILL_EMIT_OUTBOX)"},
	} {
		r := command(t, nil, "emit", c.flag, "--count=250", "--retry-for=700ms")
		mustFail(t, r, "250 events not accepted: "+c.tried, c.remedy)
		told := strings.Split(strings.TrimSpace(r.err), "\n")
		if len(told) != 4 || !strings.HasPrefix(told[0], "100 events to be sent again: "+c.tried) || !strings.HasSuffix(told[0], c.remedy+"; each is tried for 700ms (--retry-for)") ||
			!strings.HasPrefix(told[1], "event 1 to event 100: ") || !strings.HasPrefix(told[3], "event 201 to event 250: ") {
			t.Errorf("%s: %s", c.flag, r.err)
		}
		if strings.Contains(r.err+r.failure.Error(), "geheim") || r.out != "0 events accepted\n" {
			t.Errorf("%s: %+v", c.flag, r)
		}
	}
	elsewhere := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(elsewhere.Close)
	r := command(t, nil, "emit", "--to", elsewhere.URL)
	mustFail(t, r, "1 event not accepted by an ingest at "+elsewhere.URL)
	if !strings.Contains(r.err, "event 1: refused: 404 Not Found: who answers is no ingest") {
		t.Error(r.err)
	}
}

// silent never answers in time.
type silent struct{ stop context.CancelFunc }

func (s silent) Send(_ context.Context, events []*pb.CloudEvent) []error {
	s.stop()
	return slices.Repeat([]error{&producer.TryAgainError{Unknown: true, Err: errors.New("Post: interrupt signal received")}}, len(events))
}

// Of a request that an interruption ends, one line is enough, and it says what may have become of its events.
func TestEmitThatIsInterrupted(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	var told bytes.Buffer
	e := &emitter{sender: silent{stop}, patience: time.Minute, errors: &told}
	e.send(ctx, []emission{{&pb.CloudEvent{}, "event 1"}, {&pb.CloudEvent{}, "event 2"}, {&pb.CloudEvent{}, "event 3"}})
	if want := "event 1 to event 3: interrupted before the answer, and so perhaps accepted\n"; told.String() != want || e.failed != 3 || e.nobody != 0 {
		t.Errorf("%q, %d failed, %d found nobody; want %q", told.String(), e.failed, e.nobody, want)
	}
}

func TestEmitRefusesWrongFlags(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"file"}, "waybill emit - <FILE"},
		{[]string{"-", "--type=t"}, "--type: is of events that flags make"},
		{[]string{"-", "--count=2"}, "--count"},
		{[]string{"--count=0"}, "--every"},
		{[]string{"--count=-1"}, "count"},
		{[]string{"--id=1", "--count=2"}, "--id"},
		{[]string{"--id=1", "--every=1s"}, "--id"},
		{[]string{"--batch=0"}, "--batch"},
		{[]string{"--every=-1s"}, "every"},
		{[]string{"--data={"}, "--data: is not valid JSON"},
		{[]string{"--data="}, "--data: is not valid JSON"},
		{[]string{"--data-file=emit.go"}, "emit.go: is not valid JSON"},
		{[]string{"--data=1", "--data-file=emit.go"}, "data"},
		{[]string{"--data-file=nowhere"}, "nowhere"},
		{[]string{"--source="}, "source"},
		{[]string{"--type="}, "type"},
		{[]string{"--extension=Bad=x"}, "--extension: Bad: attribute names"},
		{[]string{"--content-type=/"}, "datacontenttype"},
		{[]string{"--to=nowhere"}, "--to"},
		{[]string{"--to=http://"}, "--to"},
		{[]string{"--to=grpc://host"}, "--to"},
	} {
		mustFail(t, command(t, nil, append([]string{"emit"}, test.args...)...), test.want)
	}
}

// --outbox emits by a transaction on the pipeline's database, without any process.
func TestEmitIntoTheOutbox(t *testing.T) {
	p := mustPlant(t)
	r := command(t, nil, "emit", "--outbox", p.url, "--source=/a", "--type=b", "--count=3", "--batch=2")
	if r.failure != nil || r.out != "3 events accepted\n" {
		t.Fatalf("%+v", r)
	}
	conn, err := pgx.Connect(t.Context(), p.url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var rows, transactions int
	if err := conn.QueryRow(t.Context(), `SELECT count(*), count(DISTINCT xid) FROM waybill.outbox WHERE source = '/a' AND type = 'b'`).Scan(&rows, &transactions); err != nil || rows != 3 || transactions != 2 {
		t.Fatalf("%d rows of %d transactions, %v; want 3 of 2", rows, transactions, err)
	}
	if r := command(t, nil, "emit", "--outbox", "postgres://me:geheim@127.0.0.1:bad/x"); r.failure == nil || strings.Contains(r.failure.Error()+r.out+r.err, "geheim") {
		t.Fatalf("a bad address: %+v", r)
	}
}
