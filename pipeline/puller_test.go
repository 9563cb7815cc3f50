package pipeline

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// The first message after a reset has the consumer sequence 1, and no number is missing,
// repeated or delivered twice.
func TestPullerChecksSequences(t *testing.T) {
	good := (&Batch{ID: BatchID{Number: 1, Token: 1}, count: 1}).message(appendEvent(nil, []byte("e"), 1))
	delivery := func(times, stream, consumer int) *nats.Msg {
		return &nats.Msg{
			Subject: "events.0", Header: good.Header, Data: good.Data, Sub: &nats.Subscription{},
			Reply: fmt.Sprintf("$JS.ACK.EVENTS.ingress-0.%d.%d.%d.1700000000000000000.0", times, stream, consumer),
		}
	}
	for _, c := range []struct {
		name string
		msg  *nats.Msg // after the consumer sequences 1 and 2
		want error
	}{
		{"the next one", delivery(1, 30, 3), nil},
		{"one went elsewhere", delivery(1, 31, 4), errGap},
		{"started over by somebody else", delivery(1, 10, 1), errForeignReset},
		{"redelivered", delivery(2, 10, 3), errRedelivered},
	} {
		p := &puller{more: make(chan struct{}, 1), room: make(chan struct{}, 1)}
		for i := range 2 {
			if err := p.push(delivery(1, 10*(i+1), i+1)); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.push(c.msg); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		if want := map[bool]int{true: 3, false: 2}[c.want == nil]; len(p.queue) != want || p.received.Load() != uint64(want) {
			t.Errorf("%s: %d queued, %d received", c.name, len(p.queue), p.received.Load())
		}
	}
	p := &puller{more: make(chan struct{}, 1)}
	if err := p.push(&nats.Msg{Subject: "events.0", Sub: &nats.Subscription{}}); err == nil {
		t.Error("a message that is not JetStream's is queued")
	}
}

// A puller that failed takes no more messages, while its worker may still be busy.
func TestPullerEndsItsSubscription(t *testing.T) {
	s := mustSite(t, 1, "ingress")
	p := newPuller(s.queue.js, "ingress", 0, 10, bytesOf(64<<10), time.Minute)
	if err := p.open(); err != nil {
		t.Fatal(err)
	}
	defer p.close()
	ended := make(chan struct{})
	go func() { p.run(t.Context()); close(ended) }()
	eventually(t, patience, "it waits for messages", func() bool { return s.mustConsumer(t, "ingress", 0).NumWaiting == 1 })
	p.fail(errGap)
	<-ended
	if p.sub.IsValid() {
		t.Error("the subscription goes on")
	}
	if !errors.Is(p.failure(), errGap) {
		t.Errorf("failed with %v", p.failure())
	}
}

// The buffer holds what it is given and no more, whatever the size of the messages.
func TestPullerIsBounded(t *testing.T) {
	s := mustSite(t, 1, "ingress")
	for i := range 300 {
		b := s.batch(0, 1)
		b.Events[0] = make([]byte, []int{10, 1000, 30_000}[i%3])
		s.mustPublish(t, b)
	}
	for _, limit := range []struct{ messages, bytes int }{{20, 1 << 20}, {1000, 64 << 10}} {
		ctx, cancel := context.WithCancel(t.Context())
		if _, err := s.queue.js.ResetConsumer(ctx, EventsStream, consumerName("ingress", 0)); err != nil {
			t.Fatal(err)
		}
		p := newPuller(s.queue.js, "ingress", 0, limit.messages, bytesOf(limit.bytes), 200*time.Millisecond)
		if err := p.open(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { p.run(ctx); close(ended) }()
		for taken := 0; taken < 300; {
			p.mu.Lock()
			messages, bytes := len(p.queue), p.bytes
			p.mu.Unlock()
			if messages > limit.messages || bytes > limit.bytes*3/2 {
				t.Fatalf("%d messages and %d bytes; the limits are %d and %d", messages, bytes, limit.messages, limit.bytes)
			}
			if _, ok := p.peek(); ok {
				p.pop()
				taken++
				continue
			}
			select {
			case <-p.more:
			case <-p.failed:
				t.Fatal(p.failure())
			case <-time.After(patience):
				t.Fatalf("stalled after %d", taken)
			}
		}
		cancel()
		<-ended
		p.close()
	}
}

// A worker that finds its lease over, having waited for its turn, sends nothing.
func TestWorkerChecksItsLeaseBeforeASend(t *testing.T) {
	s := mustSite(t, 1, "ingress")
	r := newRecorder("ingress")
	f, err := NewForwarder(testForwarderConfig(s, "a", r), s.queue, testLog(t), testMeter)
	if err != nil {
		t.Fatal(err)
	}
	l := &lease{ttl: time.Second, confirmed: time.Now().Add(-700 * time.Millisecond)}
	w := f.newWorker(&tenure{lease: l, drain: make(chan struct{})}, f.outlets[0], testLog(t))
	w.puller = newPuller(s.queue.js, "ingress", 0, 10, bytesOf(64<<10), time.Second)
	var request request
	request.add(held{batch: s.batch(0, 2)}, true)
	if err := w.deliver(t.Context(), &request); !errors.Is(err, errLeaseLost) || len(r.calls()) != 0 {
		t.Errorf("error %v, %d sends", err, len(r.calls()))
	}
}

func bytesOf(n int) func() int { return func() int { return n } }
