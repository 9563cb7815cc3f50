package bench

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/internal/devstack"
	"github.com/waybillhq/waybill/pipeline"
)

// mustReplay reads these ids back, twice: a pass knows nothing of the one before.
func mustReplay(t *testing.T, l *ledger, ids ...string) Verdict {
	t.Helper()
	s := &System{Name: "s", ledger: l}
	var verdicts [2]Verdict
	for i := range verdicts {
		p, v, err := s.replay(t.Context(), replayer{name: queueReplay, read: func(_ context.Context, visit func([]byte)) (int64, error) {
			for _, id := range ids {
				visit([]byte(id))
			}
			return 1000, nil
		}})
		if err != nil || p.bytes != 1000 || p.took <= 0 {
			t.Fatalf("%+v, %v", p, err)
		}
		v.Examples = nil
		verdicts[i] = v
	}
	if verdicts[0].String() != verdicts[1].String() {
		t.Errorf("the first pass: %v; the second: %v", verdicts[0], verdicts[1])
	}
	return verdicts[1]
}

func TestReplayComparesWithWhatWasAccepted(t *testing.T) {
	l := newLedger(time.Now())
	first := mustAccept(t, l, 4)
	var ids []string
	for i := range int64(4) {
		ids = append(ids, l.idOf(first+i))
	}
	if v := mustReplay(t, l, append(ids, "another run's")...); !v.OK() || v.Accepted != 4 || v.Delivered != 4 {
		t.Errorf("all: %v", v)
	}
	if v := mustReplay(t, l, ids[1:]...); v.OK() || v.Lost != 1 || v.Delivered != 3 {
		t.Errorf("one is missing: %v", v)
	}
	if v := mustReplay(t, l, append(ids, ids[2])...); v.OK() || v.Doubled != 1 || v.Lost != 0 {
		t.Errorf("one is there twice: %v", v)
	}
	if v := (Verdict{Sink: queueReplay, Doubled: 1, Retransmits: 1}); !v.OK() {
		t.Errorf("one was published twice: %v", v)
	}
}

func TestReplayFails(t *testing.T) {
	broken := errors.New("broken")
	s := &System{Name: "s", ledger: newLedger(time.Now())}
	_, _, err := s.replay(t.Context(), replayer{name: "a reader", read: func(context.Context, func([]byte)) (int64, error) { return 0, broken }})
	if !errors.Is(err, broken) || !strings.HasPrefix(err.Error(), "a reader: ") {
		t.Errorf("%v", err)
	}
}

// mustStartNATS returns a connection to a server with an empty stream EVENTS.
func mustStartNATS(t *testing.T) (*nats.Conn, jetstream.JetStream) {
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
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	for name, subject := range map[string]string{pipeline.EventsStream: "events.*", pipeline.ReceiptsStream: "receipts"} {
		if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: name, Subjects: []string{subject}}); err != nil {
			t.Fatal(err)
		}
	}
	return nc, js
}

// TestReplayQueue reads what is behind a sequence and up to another, in order, and changes nothing
// that the live path knows.
func TestReplayQueue(t *testing.T) {
	nc, js := mustStartNATS(t)
	l := newLedger(time.Now())
	calls, err := content{bytes: 10, perCall: 3, keys: 3}.deal(l.run)
	if err != nil {
		t.Fatal(err)
	}
	m := encodeBatch(calls[0])
	first := l.reserve(15, l.began)
	for i := range int64(5) {
		wire := make([]byte, len(m.wire))
		m.fill(wire, l, first+3*i)
		if _, err := js.Publish(t.Context(), "events.0", wire); err != nil {
			t.Fatal(err)
		}
	}
	queue, err := js.CreateConsumer(t.Context(), pipeline.EventsStream, jetstream.ConsumerConfig{Durable: "ingress-0"})
	if err != nil {
		t.Fatal(err)
	}
	s := &System{Name: "s", ledger: l, nats: nc}
	if last, err := s.lastQueued(t.Context()); err != nil || last != 5 {
		t.Fatalf("the last sequence is %d, %v; want 5", last, err)
	}
	before, err := s.stillState(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	bytes, err := s.replayQueue(1, 4)(t.Context(), func(id []byte) { got = append(got, string(id)) })
	if err != nil || bytes != 3*int64(len(m.wire)) {
		t.Fatalf("%d bytes, %v; want 3 messages of %d", bytes, err, len(m.wire))
	}
	var want []string
	for i := first + 3; i < first+12; i++ {
		want = append(want, l.idOf(i))
	}
	if !slices.Equal(got, want) {
		t.Errorf("read %q; want %q", got, want)
	}
	after, err := s.liveState(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if changes := before.Changes(after); len(changes) > 0 || len(before) != 3 {
		t.Errorf("of %d states reading has changed %q", len(before), changes)
	}
	// What a forwarder does is seen.
	if _, err := queue.Next(); err != nil {
		t.Fatal(err)
	}
	if after, err = s.liveState(t.Context()); err != nil {
		t.Fatal(err)
	}
	if changes := before.Changes(after); len(changes) != 1 || !strings.HasPrefix(changes[0], "consumer ingress-0: ") {
		t.Errorf("changes: %q; want those of the consumer", changes)
	}
}
