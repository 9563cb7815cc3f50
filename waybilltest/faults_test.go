package waybilltest_test

import (
	"bytes"
	"log/slog"
	"testing"
	"time"

	"github.com/waybillhq/waybill/waybilltest"
)

// While the endpoint is down nothing comes and the archive goes on; afterwards everything comes.
func TestEndpointDown(t *testing.T) {
	t.Parallel()
	w := waybilltest.Start(t, waybilltest.WithBehaviour(waybilltest.Behaviour{Down: true}))
	w.Emit(t, numbered("/a", 5)...)
	w.ExpectArchived(t, waybilltest.Filter{}, 5, patience)
	w.Expect(t, waybilltest.Filter{}, 0, 300*time.Millisecond)
	w.SetBehaviour(t, waybilltest.Behaviour{})
	w.Expect(t, waybilltest.Filter{}, 5, patience)
}

// What the endpoint refuses is a dead letter, and the rest is delivered.
func TestEndpointRefuses(t *testing.T) {
	t.Parallel()
	w := waybilltest.Start(t)
	w.SetBehaviour(t, waybilltest.Behaviour{RefuseType: "^bad", RefuseCode: "SCHEMA_MISSING"})
	w.Emit(t,
		waybilltest.Event{ID: "1", Source: "/a", Type: "bad.one", Data: []byte("x")},
		waybilltest.Event{ID: "2", Source: "/a", Type: "good"})
	w.Expect(t, waybilltest.Filter{}, 1, patience)
	letters := w.ExpectDeadLetters(t, waybilltest.Filter{Source: "/a"}, 1, patience)
	if l := letters[0]; l.Sink != "ingress" || l.Code != "SCHEMA_MISSING" || l.Reason == "" || l.Event.ID != "1" || string(l.Event.Data) != "x" || l.FailedAt.IsZero() {
		t.Errorf("%+v", l)
	}
	if n := len(w.DeadLetters(t, waybilltest.Filter{Type: "good"})); n != 0 {
		t.Errorf("%d dead letters of an event that was delivered", n)
	}
	w.ExpectDeadLetters(t, waybilltest.Filter{Type: "good"}, 0, 100*time.Millisecond)
}

// What waits beyond its time to live is a dead letter.
func TestEventTTL(t *testing.T) {
	t.Parallel()
	// Long enough for the archive, for which an event can expire too.
	w := waybilltest.Start(t, waybilltest.WithEventTTL(15*time.Second), waybilltest.WithBehaviour(waybilltest.Behaviour{Overloaded: true}))
	w.Emit(t, numbered("/a", 3)...)
	for _, l := range w.ExpectDeadLetters(t, waybilltest.Filter{}, 3, patience) {
		if l.Sink != "ingress" || l.Code != "expired" {
			t.Errorf("%s", l)
		}
	}
}

// An event whose answer was lost comes again, and is one event that was delivered twice.
func TestEndpointLosesAnswers(t *testing.T) {
	t.Parallel()
	w := waybilltest.Start(t, waybilltest.WithBehaviour(waybilltest.Behaviour{LoseEvery: 1}))
	w.Emit(t, numbered("/a", 1)...)
	w.Expect(t, waybilltest.Filter{}, 1, patience)
	deadline := time.Now().Add(patience)
	for w.Received(waybilltest.Filter{})[0].Deliveries < 2 {
		if time.Now().After(deadline) {
			t.Fatal("it did not come again")
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.SetBehaviour(t, waybilltest.Behaviour{})
}

// A slow endpoint gets events late.
func TestEndpointDelays(t *testing.T) {
	t.Parallel()
	const delay = 500 * time.Millisecond
	w := waybilltest.Start(t, waybilltest.WithBehaviour(waybilltest.Behaviour{Delay: delay}))
	began := time.Now()
	w.Emit(t, numbered("/a", 1)...)
	if at := w.Expect(t, waybilltest.Filter{}, 1, patience)[0].ReceivedAt; at.Sub(began) < delay {
		t.Errorf("it came after %v", at.Sub(began))
	}
}

// An event that is sent again is one event; by the attribute, where there is one.
func TestDedupe(t *testing.T) {
	t.Parallel()
	w := waybilltest.Start(t, waybilltest.WithDedupeAttribute("key"))
	event := func(source, id, key, subject string) waybilltest.Event {
		e := waybilltest.Event{ID: id, Source: source, Type: "t", Subject: subject}
		if key != "" {
			e.Extensions = map[string]any{"key": key}
		}
		return e
	}
	w.Emit(t, event("/by/id", "1", "", ""))
	w.Emit(t, event("/by/id", "1", "", ""), event("/by/id", "2", "", "last"))
	w.Emit(t, event("/by/key", "", "k", ""))
	w.Emit(t, event("/by/key", "", "k", ""), event("/by/key", "", "l", "last"))
	w.Emit(t, event("/same/id", "1", "k", ""), event("/same/id", "1", "l", "last"))
	w.Emit(t, event("/no/id", "", "", ""), event("/no/id", "", "", "last"))
	for _, source := range []string{"/by/id", "/by/key", "/same/id", "/no/id"} {
		got := w.Expect(t, waybilltest.Filter{Source: source}, 2, patience)
		for i, e := range got {
			if e.Seqnum != int64(i+1) || e.Deliveries != 1 || (e.Subject == "last") != (i == 1) {
				t.Errorf("number %d is %s, %q, which came %d times", i, e, e.Subject, e.Deliveries)
			}
		}
	}
}

// The log goes where it is wanted.
func TestLog(t *testing.T) {
	var log bytes.Buffer
	t.Run("a test", func(t *testing.T) {
		waybilltest.Start(t, waybilltest.WithLog(slog.New(slog.NewTextHandler(&log, nil))))
	})
	for _, text := range []string{"msg=\"ingest runs\" process=ingest", "msg=\"janitor runs\" process=janitor", "msg=\"forwarder runs\" process=forwarder"} {
		if !bytes.Contains(log.Bytes(), []byte(text)) {
			t.Errorf("the log lacks %s:\n%s", text, &log)
		}
	}
}
