package replay

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/waybillhq/waybill/internal/devstack"
	"github.com/waybillhq/waybill/pipeline"
)

// patience bounds a wait for what must come about.
const patience = time.Minute

// epoch is when the first batch of a test is accepted; each later one a second after.
var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// site is a nats-server with a stream EVENTS.
type site struct {
	js    jetstream.JetStream
	queue *pipeline.Queue
}

func mustSite(t *testing.T) *site {
	t.Helper()
	server, err := devstack.StartNATS(devstack.DefaultNATSOptions(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	nc, err := pipeline.ConnectNATS(server.URL(), "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	s := &site{}
	if s.js, err = jetstream.New(nc); err != nil {
		t.Fatal(err)
	}
	if s.queue, err = pipeline.NewQueue(nc); err != nil {
		t.Fatal(err)
	}
	s.mustCreate(t)
	return s
}

func (s *site) mustCreate(t *testing.T) {
	t.Helper()
	if _, err := s.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: pipeline.EventsStream, Subjects: []string{"events.*"}}); err != nil {
		t.Fatal(err)
	}
}

func (s *site) mustStream(t *testing.T) jetstream.Stream {
	t.Helper()
	stream, err := s.js.Stream(t.Context(), pipeline.EventsStream)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// message is one batch as it is queued.
type message struct {
	number           int64 // and the seconds after epoch at which it was accepted
	lane             int
	queued           int64 // seconds after epoch; 0: as accepted
	attempt          int
	origin           string
	events           []string // ids; the type is what stands before the colon, if there is one
	acceptedOverride int64    // seconds after epoch; 0: number
}

func batchID(number int64) pipeline.BatchID {
	return pipeline.BatchID{Number: number, Token: uint64(number) * 0x9e3779b97f4a7c15}
}

func (s *site) mustPublish(t *testing.T, messages ...message) {
	t.Helper()
	for _, m := range messages {
		accepted := m.number
		if m.acceptedOverride > 0 {
			accepted = m.acceptedOverride
		}
		queued := max(m.queued, accepted)
		var body []byte
		for _, id := range m.events {
			body = protowire.AppendTag(body, 1, protowire.BytesType)
			body = protowire.AppendBytes(body, mustEncode(t, id))
		}
		micros := func(seconds int64) string {
			return strconv.FormatInt(epoch.Add(time.Duration(seconds)*time.Second).UnixMicro(), 10)
		}
		h := nats.Header{
			"Waybill-Batch": {batchID(m.number).String()}, "Waybill-Attempt": {strconv.Itoa(m.attempt)},
			"Waybill-Events": {strconv.Itoa(len(m.events))}, "Waybill-Accepted": {micros(accepted)}, "Waybill-Queued": {micros(queued)},
		}
		if m.origin != "" {
			h["Waybill-Origin"] = []string{m.origin}
		}
		if _, err := s.js.PublishMsg(t.Context(), &nats.Msg{Subject: fmt.Sprintf("events.%d", m.lane), Header: h, Data: body}); err != nil {
			t.Fatal(err)
		}
	}
}

func mustEncode(t *testing.T, id string) []byte {
	t.Helper()
	typ := "t"
	for i, c := range id {
		if c == ':' {
			typ = id[:i]
		}
	}
	encoded, err := proto.Marshal(&pb.CloudEvent{
		Id: id, Source: "/source", Type: typ, SpecVersion: "1.0", Data: &pb.CloudEvent_TextData{TextData: "payload of " + id},
	})
	if err != nil {
		t.Fatal(err)
	}
	return encoded
}

// recorder is a sink that keeps what it took, by lane, and answers as the test wants.
type recorder struct {
	limits pipeline.Limits

	mu    sync.Mutex // guards what follows
	took  map[int][]string
	calls int
	marks map[string]bool // replayids
	// answer decides on one request; nil: everything is delivered.
	answer func(ctx context.Context, lane int, ids []string) ([]pipeline.Result, error)
}

var _ pipeline.Sink = (*recorder)(nil)

func newRecorder() *recorder {
	return &recorder{limits: pipeline.Limits{Events: 100, Bytes: 1 << 20}, took: map[int][]string{}, marks: map[string]bool{}}
}

func (r *recorder) Name() string                { return "ingress" }
func (r *recorder) Limits() pipeline.Limits     { return r.limits }
func (r *recorder) Probe(context.Context) error { return nil }

func (r *recorder) Send(ctx context.Context, lane int, items []pipeline.Item) ([]pipeline.Result, error) {
	ids := make([]string, len(items))
	results := make([]pipeline.Result, len(items))
	marks := make([]string, len(items))
	for i, item := range items {
		ce := new(pb.CloudEvent)
		if err := proto.Unmarshal(item.Encoded(), ce); err != nil {
			return nil, err
		}
		ids[i], marks[i] = ce.Id, ce.Attributes[Attribute].GetCeString()
		results[i].Verdict = pipeline.Delivered
	}
	r.mu.Lock()
	answer := r.answer
	r.calls++
	r.mu.Unlock()
	var err error
	if answer != nil {
		if results, err = answer(ctx, lane, ids); err != nil {
			return nil, err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, result := range results {
		if result.Verdict == pipeline.Delivered {
			r.took[lane] = append(r.took[lane], ids[i])
			r.marks[marks[i]] = true
		}
	}
	return results, nil
}

func (r *recorder) lane(lane int) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.took[lane])
}

func (r *recorder) total() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, ids := range r.took {
		n += len(ids)
	}
	return n
}

func delivered(n int) []pipeline.Result {
	results := make([]pipeline.Result, n)
	for i := range results {
		results[i].Verdict = pipeline.Delivered
	}
	return results
}

// config is that of a replay from the stream of a site.
func (s *site) config(sink *recorder, change ...func(*Config)) Config {
	c := DefaultConfig()
	c.Name, c.Queue, c.From, c.Target = "test", s.queue, FromStream, "somewhere"
	if sink != nil {
		c.Sink = sink
	}
	for _, f := range change {
		f(&c)
	}
	return c
}

// mustReplay runs a replay, and compares what it delivered with what its dry run says.
func mustReplay(t *testing.T, c Config) Result {
	t.Helper()
	dry, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	counted, err := dry.Count(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	result, err := r.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if counted.Events != result.Events || !mapsEqual(counted.Lanes, result.Lanes) || !mapsEqual(counted.Types, result.Types) {
		t.Errorf("the dry run counts %d, %v, %v; delivered were %d, %v, %v", counted.Events, counted.Lanes, counted.Types, result.Events, result.Lanes, result.Types)
	}
	if p := r.Progress(); p.Part != 1 || p.Events != result.Events {
		t.Errorf("in the end: %+v", p)
	}
	return result
}

func mapsEqual[K comparable](a, b map[K]int64) bool { return fmt.Sprint(a) == fmt.Sprint(b) }

func mustPoint(t *testing.T, text string) (p Point) {
	t.Helper()
	if err := p.UnmarshalText([]byte(text)); err != nil {
		t.Fatal(err)
	}
	return p
}

// second is a time in the epoch of the tests.
func second(t *testing.T, n int64) Point {
	t.Helper()
	return mustPoint(t, epoch.Add(time.Duration(n)*time.Second).Format(time.RFC3339))
}
