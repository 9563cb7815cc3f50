package pipeline

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	"github.com/waybillhq/waybill/internal/devstack"
)

func mustHistory(t testing.TB, q *Queue) *History {
	t.Helper()
	h, err := q.History(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// sequences are those that a read visits until it ends with err.
func sequences(t testing.TB, h *History, from, to uint64) (seen []uint64, err error) {
	t.Helper()
	err = h.Read(t.Context(), from, to, func(m Logged) error {
		if m.Err != nil || m.Batch == nil || m.Batch.Lane != m.Lane {
			t.Errorf("message %d: %+v", m.Seq, m)
		}
		seen = append(seen, m.Seq)
		return nil
	})
	return seen, err
}

func TestHistoryReadsWhatIsThere(t *testing.T) {
	s := mustSite(t, 2, "ingress")
	if h := mustHistory(t, s.queue); h.First != 1 || h.Last != 0 {
		t.Errorf("an empty stream has %d to %d", h.First, h.Last)
	}
	if _, ok, err := mustHistory(t, s.queue).Oldest(t.Context()); ok || err != nil {
		t.Errorf("an empty stream has an oldest message: %v", err)
	}
	s.mustSend(t, 5) // sequences 1 to 10
	h := mustHistory(t, s.queue)
	seen, err := sequences(t, h, 3, 9)
	if err != nil || !slices.Equal(seen, []uint64{3, 4, 5, 6, 7, 8, 9}) {
		t.Errorf("%v, %v", seen, err)
	}
	if seen, err := sequences(t, h, 5, 4); err != nil || len(seen) > 0 {
		t.Errorf("of nothing: %v, %v", seen, err)
	}
	err = h.ReadHeaders(t.Context(), 1, 10, func(m Logged) error {
		want := s.sent[m.Seq-1]
		if m.Batch.ID != want.ID || m.Lane != want.Lane || m.Batch.Count() != len(want.Events) || m.Batch.Events != nil {
			t.Errorf("message %d: %+v", m.Seq, m.Batch)
		}
		whole, err := h.Message(t.Context(), m.Seq)
		if err != nil || whole.Batch.ID != want.ID || len(whole.Batch.Events) != len(want.Events) || whole.Lane != want.Lane {
			t.Errorf("message %d: %+v, %v", m.Seq, whole, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if oldest, ok, err := h.Oldest(t.Context()); err != nil || !ok || !oldest.Equal(s.sent[0].QueuedAt.Truncate(time.Microsecond)) {
		t.Errorf("oldest %v, %v", oldest, err)
	}
	if at, err := h.QueuedAt(t.Context(), s.sent[6].QueuedAt.Truncate(time.Microsecond)); err != nil || at != 7 {
		t.Errorf("queued at the time of 7: %d, %v", at, err)
	}
	stop := errors.New("stop")
	if err := h.Read(t.Context(), 1, 10, func(Logged) error { return stop }); !errors.Is(err, stop) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = h.Read(ctx, 1, 10, func(Logged) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) && !errors.Is(err, jetstream.ErrMsgIteratorClosed) {
		t.Errorf("after the end of its context: %v", err)
	}
}

// What the janitor trims before it is read is named, wherever it is.
func TestHistoryNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	s := mustSite(t, 2, "ingress")
	s.mustSend(t, 5)
	h := mustHistory(t, s.queue)
	stream, err := s.queue.js.Stream(t.Context(), EventsStream)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.DeleteMsg(t.Context(), 8); err != nil {
		t.Fatal(err)
	}
	if err := stream.Purge(t.Context(), jetstream.WithPurgeSequence(4)); err != nil {
		t.Fatal(err)
	}
	var gap *HistoryGapError
	if seen, err := sequences(t, h, 2, 10); !errors.As(err, &gap) || gap.From != 2 || gap.To != 4 || len(seen) > 0 {
		t.Errorf("the beginning: %v, %v", seen, err)
	}
	if seen, err := sequences(t, h, gap.To, 10); !errors.As(err, &gap) || gap.From != 8 || gap.To != 9 || len(seen) != 4 {
		t.Errorf("the middle: %v, %v", seen, err)
	}
	if seen, err := sequences(t, h, gap.To, 10); err != nil || len(seen) != 2 {
		t.Errorf("the rest: %v, %v", seen, err)
	}
	if _, err := h.Message(t.Context(), 8); !errors.As(err, &gap) || gap.From != 8 || gap.To != 9 {
		t.Errorf("the message: %v", err)
	}
	if err := stream.DeleteMsg(t.Context(), 10); err != nil {
		t.Fatal(err)
	}
	if seen, err := sequences(t, h, 9, 10); !errors.As(err, &gap) || gap.From != 10 || gap.To != 11 || len(seen) != 1 {
		t.Errorf("the end: %v, %v", seen, err)
	}
	if err := stream.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if seen, err := sequences(t, h, 5, 10); !errors.As(err, &gap) || gap.From != 5 || gap.To != 11 || len(seen) > 0 {
		t.Errorf("all of it: %v, %v", seen, err)
	}
	if err := s.queue.js.DeleteStream(t.Context(), EventsStream); err != nil {
		t.Fatal(err)
	}
	s.mustCreate(t)
	if _, err := sequences(t, h, 5, 10); !errors.Is(err, ErrHistoryLost) {
		t.Errorf("of another stream: %v", err)
	}
}

func TestHistoryOfACorruptMessage(t *testing.T) {
	s := mustSite(t, 1, "ingress")
	if _, err := s.queue.js.Publish(t.Context(), "events.0", []byte("x")); err != nil {
		t.Fatal(err)
	}
	h := mustHistory(t, s.queue)
	for name, read := range map[string]func(context.Context, uint64, uint64, func(Logged) error) error{"whole": h.Read, "headers": h.ReadHeaders} {
		if err := read(t.Context(), 1, 1, func(m Logged) error {
			if m.Err == nil || m.Batch != nil || m.Seq != 1 {
				t.Errorf("%s: %+v", name, m)
			}
			return nil
		}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, ok, err := h.Oldest(t.Context()); ok || err != nil {
		t.Errorf("it has an age: %v", err)
	}
}

func TestKeyOf(t *testing.T) {
	encoded, err := proto.Marshal(&pb.CloudEvent{Id: "7", Source: "/s", Type: "t", SpecVersion: "1.0", Data: &pb.CloudEvent_TextData{TextData: "x"}})
	if err != nil {
		t.Fatal(err)
	}
	encoded = AppendText(encoded, "replayid", "r")
	if source, typ := KeyOf(encoded); source != "/s" || typ != "t" || IDOf(encoded) != "7" {
		t.Errorf("%q, %q, %q", source, typ, IDOf(encoded))
	}
	for n := range encoded {
		KeyOf(encoded[:n]) // it ends
	}
}

func TestReplayStates(t *testing.T) {
	s := mustSite(t, 1, "ingress")
	states, err := s.queue.ReplayStates(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if state, revision, err := states.Load(t.Context(), "x"); err != nil || state != nil || revision != 0 {
		t.Fatalf("%s, %d, %v", state, revision, err)
	}
	first, err := states.Save(t.Context(), "x", []byte("1"), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := states.Save(t.Context(), "x", []byte("other"), 0); !errors.Is(err, ErrReplayTaken) {
		t.Errorf("a second beginning: %v", err)
	}
	again, err := s.queue.ReplayStates(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again.Save(t.Context(), "x", []byte("2"), first); err != nil {
		t.Fatal(err)
	}
	if _, err := states.Save(t.Context(), "x", []byte("3"), first); !errors.Is(err, ErrReplayTaken) {
		t.Errorf("after somebody else: %v", err)
	}
	if state, _, err := states.Load(t.Context(), "x"); err != nil || string(state) != "2" {
		t.Errorf("%s, %v", state, err)
	}
	for _, bucket := range LiveBuckets() {
		if bucket == replaysBucket {
			t.Error("the bucket of replays is of the live path")
		}
	}
}

// The sequences of a stream that was made anew are other batches', also where it has as many.
func TestHistoryOfAStreamThatIsFilledAnew(t *testing.T) {
	s := mustSite(t, 2, "ingress")
	s.mustSend(t, 5)
	h := mustHistory(t, s.queue)
	if err := s.queue.js.DeleteStream(t.Context(), EventsStream); err != nil {
		t.Fatal(err)
	}
	s.mustCreate(t)
	s.mustSend(t, 6)
	for name, read := range map[string]func(context.Context, uint64, uint64, func(Logged) error) error{"whole": h.Read, "headers": h.ReadHeaders} {
		if err := read(t.Context(), 1, 10, func(Logged) error { return nil }); !errors.Is(err, ErrHistoryLost) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A batch may fill a message up to the server's max_payload, whatever that is.
func TestHistoryOfLargeMessages(t *testing.T) {
	options := devstack.DefaultNATSOptions(t.TempDir())
	options.MaxPayload = 16 << 20
	server, err := devstack.StartNATS(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	q, _ := mustQueue(t, server)
	config := DefaultQueueConfig()
	config.MaxBytes, config.MaxReceiptBytes = 256<<20, 64<<20
	if err := q.ensureStreams(t.Context(), config, 1); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		m := &nats.Msg{Subject: "events.0", Data: make([]byte, q.MaxBatchBytes()), Header: nats.Header{"Waybill-Batch": {"1.1"}}}
		if _, err := q.js.PublishMsg(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	n := 0
	if err := mustHistory(t, q).Read(ctx, 1, 3, func(Logged) error { n++; return nil }); err != nil || n != 3 {
		t.Errorf("%d messages of %d bytes: %v", n, q.MaxBatchBytes(), err)
	}
}
