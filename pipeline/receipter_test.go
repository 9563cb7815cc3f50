package pipeline

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"
)

// However much is refused, the messages stay small, no batch is split, and no index is lost.
func TestReceiptsFitMessages(t *testing.T) {
	refusals := func(n int, reason string) []Refusal {
		all := make([]Refusal, n)
		for i := range all {
			all[i] = Refusal{Index: i, Code: "INVALID_ARGUMENT", Reason: plainText(reason, maxRefusalReason)}
		}
		return all
	}
	var batches []BatchReceipt
	for i := range 20_000 {
		batches = append(batches, BatchReceipt{ID: BatchID{Number: int64(i + 1), Token: 1}})
	}
	for i, reason := range []string{strings.Repeat("long ", 400), strings.Repeat("<\"\x01>", 400), strings.Repeat("ü", 700), ""} {
		batches = append(batches, BatchReceipt{ID: BatchID{Number: int64(30_000 + i), Token: 2}, Refused: refusals(MaxBatchEvents, reason)})
	}
	messages, err := encodeReceipts("ingress", 7, batches)
	if err != nil {
		t.Fatal(err)
	}
	at := 0
	for _, body := range messages {
		if len(body) > maxReceiptMessage {
			t.Errorf("a message of %d bytes", len(body))
		}
		r, err := parseReceipt(body)
		if err != nil || r.Sink != "ingress" || r.Lane != 7 {
			t.Fatalf("%v %v", r.Sink, err)
		}
		for _, b := range r.Batches {
			want := batches[at]
			if b.ID != want.ID || len(b.Refused) != len(want.Refused) {
				t.Fatalf("batch %d: %v with %d refusals, want %v with %d", at, b.ID, len(b.Refused), want.ID, len(want.Refused))
			}
			for i, f := range b.Refused {
				if f.Index != i || f.Code != "INVALID_ARGUMENT" || !utf8.ValidString(f.Reason) {
					t.Fatalf("refusal %+v", f)
				}
			}
			at++
		}
	}
	if at != len(batches) || len(messages) < 5 {
		t.Errorf("%d of %d batches in %d messages", at, len(batches), len(messages))
	}
}

// What the lanes have to say goes in one message, as far as it fits, and each hears of its own.
func TestReceiptsShareMessages(t *testing.T) {
	s := mustSite(t, 1, "ingress")
	r := newReceipter(s.queue.js, mustProducerMetrics(t))
	const lanes = 16
	var stores sync.WaitGroup
	for lane := range lanes {
		stores.Go(func() {
			batches := []BatchReceipt{{ID: BatchID{Number: int64(lane + 1), Token: 1}}}
			if err := r.store(t.Context(), "ingress", lane, batches, func(error) {}); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, patience, "all lanes wait", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.waiting) == lanes
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var run sync.WaitGroup
	run.Go(func() { r.run(ctx) })
	stores.Wait()
	cancel()
	run.Wait()
	stream, err := s.queue.js.Stream(t.Context(), ReceiptsStream)
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().State.Msgs; n != 1 {
		t.Errorf("%d messages, want 1", n)
	}
	if got := s.receipts(t)["ingress"]; len(got) != lanes {
		t.Errorf("receipts of %d batches, want %d", len(got), lanes)
	}
}

// A worker that no longer waits holds nobody up, and one that waits is told after all of its
// lines are stored.
func TestReceiptsOfThoseWhoWait(t *testing.T) {
	gone := make(chan struct{})
	close(gone)
	leaver := &parcel{lines: [][]byte{[]byte("1")}, gone: gone, done: make(chan struct{}), left: 1}
	if m := pack([]*parcel{leaver}); m[0].awaited() {
		t.Error("nobody waits, and it is awaited")
	}
	large := bytes.Repeat([]byte("x"), maxReceiptMessage-10)
	p := &parcel{lines: [][]byte{large, []byte("2"), large}, done: make(chan struct{}), left: 3}
	messages := pack([]*parcel{leaver, p})
	var got []byte
	for i, m := range messages {
		if len(m.body) > maxReceiptMessage {
			t.Errorf("a message of %d bytes", len(m.body))
		}
		if !m.awaited() {
			t.Errorf("message %d is not awaited", i)
		}
		got = append(append(got, m.body...), '\n')
		select {
		case <-p.done:
			t.Errorf("done before message %d is stored", i)
		default:
		}
		m.stored()
	}
	<-p.done
	if want := slices.Concat([]byte("1\n"), large, []byte("\n2\n"), large, []byte("\n")); !bytes.Equal(got, want) {
		t.Errorf("%d bytes in %d messages, want %d", len(got), len(messages), len(want))
	}
}

func TestPlainText(t *testing.T) {
	for _, c := range []struct {
		in    string
		limit int
		want  string
	}{
		{"short", 10, "short"},
		{"a\x00b", 10, "a?b"},
		{"a\xffb", 10, "a?b"},
		{"aaaü", 4, "aaa"},
		{"aaa€", 5, "aaa"},
		{"aaa€b", 6, "aaa€"},
		{"anything", 0, ""},
		{"aa\xff\xff\xff\xff\xff", 5, "aa?"},
	} {
		got := plainText(c.in, c.limit)
		if !utf8.ValidString(got) || strings.ContainsRune(got, 0) || len(got) > max(c.limit, len(c.want)) {
			t.Errorf("%q to %d: %q", c.in, c.limit, got)
		}
		if c.in != "aa\xff\xff\xff\xff\xff" && got != c.want {
			t.Errorf("%q to %d: %q, want %q", c.in, c.limit, got, c.want)
		}
	}
}

func TestDeliveredForgetsTheOldest(t *testing.T) {
	d := newDelivered()
	id := func(n int) BatchID { return BatchID{Number: int64(n), Token: 9} }
	for n := range deliveredMax + 10 {
		d.add(id(n), delivery{})
		d.add(id(n), delivery{attempt: 1})
	}
	if len(d.known) != deliveredMax || len(d.order) != deliveredMax {
		t.Fatalf("%d known, %d in order", len(d.known), len(d.order))
	}
	for n := range deliveredMax + 10 {
		_, known := d.known[id(n)]
		if known != (n >= 10) {
			t.Fatalf("batch %d of %d: known %v", n, deliveredMax+10, known)
		}
	}
}

// What comes again is acked if its receipt is stored, receipted if that may be lost, and
// sent only where the sink alone knows what it refused.
func TestDeliveredTreatment(t *testing.T) {
	for _, c := range []struct {
		name    string
		what    delivery
		attempt int
		want    treatment
	}{
		{"redelivered after its receipt", delivery{receipt: true}, 0, ackIt},
		{"redelivered before its receipt", delivery{}, 0, receiptIt},
		{"retransmitted: the receipt was lost", delivery{receipt: true}, 1, receiptIt},
		{"refusals, redelivered after the receipt", delivery{receipt: true, refusals: true}, 0, ackIt},
		{"refusals, redelivered before the receipt", delivery{refusals: true}, 0, sendIt},
		{"refusals, retransmitted", delivery{receipt: true, refusals: true}, 1, sendIt},
	} {
		d := newDelivered()
		b := &Batch{ID: BatchID{Number: 1, Token: 2}, Attempt: c.attempt}
		if d.treat(b) != sendIt {
			t.Errorf("%s: an unknown one is not sent", c.name)
		}
		d.add(b.ID, c.what)
		if got := d.treat(b); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
		if other := (&Batch{ID: BatchID{Number: 1, Token: 3}}); d.treat(other) != sendIt {
			t.Errorf("%s: the same number with another token is not sent", c.name)
		}
	}
}
