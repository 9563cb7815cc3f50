package intake

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/proto"

	"github.com/waybillhq/waybill/pipeline"
)

// patience bounds every wait of a test; no test waits for it to pass.
const patience = time.Minute

// shortTimeout is a BodyTimeout for the tests that wait until it is over. A loaded machine may
// keep any goroutine for hundreds of milliseconds, and none of what must be in time may fail by
// that.
const shortTimeout = time.Second

// recorder is an Accepter that keeps what it was given. It answers at once with verdict's
// error, or, when held, only when the test says so.
type recorder struct {
	mu      sync.Mutex
	units   [][]pipeline.Event
	answers []chan error
	verdict func(unit int) error
	held    bool
	changed chan struct{} // closed and replaced at every Submit
}

func newRecorder() *recorder {
	return &recorder{changed: make(chan struct{}), verdict: func(int) error { return nil }}
}

func (r *recorder) Submit(events []pipeline.Event) <-chan error {
	r.mu.Lock()
	defer r.mu.Unlock()
	answer := make(chan error, 1)
	r.units = append(r.units, events)
	r.answers = append(r.answers, answer)
	if !r.held {
		answer <- r.verdict(len(r.units) - 1)
	}
	close(r.changed)
	r.changed = make(chan struct{})
	return answer
}

// waitUnits returns when n units were submitted.
func (r *recorder) waitUnits(t *testing.T, n int) {
	t.Helper()
	deadline := time.After(patience)
	for {
		r.mu.Lock()
		have, changed := len(r.units), r.changed
		r.mu.Unlock()
		if have >= n {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("%d units submitted, want %d", have, n)
		}
	}
}

// unitOf returns which unit has the event of that id, or -1.
func (r *recorder) unitOf(id string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.IndexFunc(r.units, func(unit []pipeline.Event) bool {
		return slices.ContainsFunc(unit, func(e pipeline.Event) bool { return e.ID == id })
	})
}

func (r *recorder) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.units)
}

// answer gives a held unit its answer.
func (r *recorder) answer(unit int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers[unit] <- err
}

// release answers all that waits and holds nothing any more.
func (r *recorder) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held = false
	for _, answer := range r.answers {
		select {
		case answer <- nil:
		default: // it has its answer
		}
	}
}

// events returns all submitted events, decoded.
func (r *recorder) events(t *testing.T) []*pb.CloudEvent {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []*pb.CloudEvent
	for _, unit := range r.units {
		for _, event := range unit {
			ce := new(pb.CloudEvent)
			if err := proto.Unmarshal(event.Encoded, ce); err != nil {
				t.Fatal(err)
			}
			all = append(all, ce)
		}
	}
	return all
}

func (r *recorder) only(t *testing.T) *pb.CloudEvent {
	t.Helper()
	all := r.events(t)
	if len(all) != 1 {
		t.Fatalf("%d events submitted, want 1", len(all))
	}
	return all[0]
}

func mustIntake(t testing.TB, accepter Accepter, change func(*Config)) *Intake {
	t.Helper()
	config := DefaultConfig()
	if change != nil {
		change(&config)
	}
	in, err := New(config, accepter)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// checkReleased fails unless the whole budget is free in time.
func checkReleased(t *testing.T, in *Intake) {
	t.Helper()
	eventually(t, "the budget is released", func() bool { return in.Budget().Used() == 0 })
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// site is an HTTP server in front of a recorder.
type site struct {
	*httptest.Server
	intake   *Intake
	recorder *recorder
}

func mustSite(t *testing.T, change func(*Config)) *site {
	t.Helper()
	r := newRecorder()
	in := mustIntake(t, r, change)
	server := httptest.NewServer(NewHTTP(in))
	t.Cleanup(server.Close)
	return &site{Server: server, intake: in, recorder: r}
}

// reply is a response, read.
type reply struct {
	status int
	header http.Header
	body   string
}

func (s *site) post(t *testing.T, body string, headers ...string) reply {
	t.Helper()
	return s.do(t, http.MethodPost, EventsPath, strings.NewReader(body), headers...)
}

func (s *site) do(t *testing.T, method, path string, body io.Reader, headers ...string) reply {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		request.Header.Add(headers[i], headers[i+1])
	}
	response, err := s.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{status: response.StatusCode, header: response.Header, body: string(text)}
}

// problem reads the reply as a problem document with the wanted status and name.
func (r reply) problem(t *testing.T, status int, name string) problem {
	t.Helper()
	if r.status != status {
		t.Fatalf("status %d, want %d: %s", r.status, status, r.body)
	}
	if got := r.header.Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("content type %q of a problem", got)
	}
	var p problem
	if err := json.Unmarshal([]byte(r.body), &p); err != nil {
		t.Fatalf("%v in %s", err, r.body)
	}
	if p.Type != problemPrefix+name || p.Status != status || p.Title == "" || p.Detail == "" {
		t.Errorf("problem %+v, want %s with status, title and detail", p, name)
	}
	return p
}

func (r reply) accepted(t *testing.T, want int) {
	t.Helper()
	var got acceptedResponse
	if r.status != http.StatusOK {
		t.Fatalf("status %d: %s", r.status, r.body)
	}
	if err := json.Unmarshal([]byte(r.body), &got); err != nil || got.Accepted != want {
		t.Errorf("body %s, want %d accepted (%v)", r.body, want, err)
	}
}

const (
	structuredType = "application/cloudevents+json"
	batchType      = "application/cloudevents-batch+json"
)

// eventJSON is a small valid event.
func eventJSON(id string) string {
	return `{"specversion":"1.0","id":"` + id + `","source":"/shop","type":"order.placed","data":{"n":1}}`
}
