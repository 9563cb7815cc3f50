package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/pipeline/failpoint"
)

// Why a worker starts its consumer over.
var (
	errGap          = errors.New("messages of the consumer went to somebody else")
	errRedelivered  = errors.New("a message was redelivered")
	errForeignReset = errors.New("the consumer was reset or made anew by somebody else")
	errUnheld       = errors.New("the consumer waits for acks of messages that this worker does not hold")
	errDisconnected = errors.New("the connection to NATS was lost")
	errSilent       = errors.New("the consumer does not answer")
)

// pullSilence is how much later than its expiry the end of a pull request may be reported:
// a server that forgot a request sends nothing at all.
const pullSilence = 3 * time.Second

// held is a message that a worker has and has not acked.
type held struct {
	msg     *nats.Msg
	seq     uint64 // in the stream
	batch   *Batch // nil: corrupt
	err     error  // what is wrong with a corrupt one
	arrived time.Time
	size    int // of the message as it came, bytes
}

// heldOverhead is about what a message costs beside its bytes: itself, its batch, and an item,
// a slice and a result per event where it holds few.
const heldOverhead = 1 << 10

// memory is about how many bytes the message keeps.
func (h held) memory() int { return h.size + heldOverhead }

// puller reads a consumer from a reset on, one pull request at a time, into a bounded
// buffer. jetstream's own iterator is not used: it bounds messages or bytes but not both
// (its PullMaxBytes makes a buffer of a million slots), and its Stop returns before its
// subscription has ended, so that a standing pull of ours could take the first messages
// after our own reset.
type puller struct {
	js          jetstream.JetStream
	nc          *nats.Conn
	name        string // of the consumer
	answered    func() // called once, when a pull request brings a first sign of life
	took        func(messages int)
	lane        int
	maxMessages int
	maxBytes    func() int // may change
	// expires bounds how long a pull request stands. The one of a process that is paused
	// must have expired before another takes over its lane, or it takes the messages.
	expires time.Duration

	inbox  string
	msgs   chan *nats.Msg
	status chan nats.Status
	sub    *nats.Subscription
	failed chan struct{} // closed when err is set

	received atomic.Uint64 // newest consumer sequence, without a gap since the reset
	acked    atomic.Uint64 // acks sent since the reset

	mu    sync.Mutex // guards what follows
	queue []held
	bytes int
	err   error
	more  chan struct{} // capacity 1: something was queued
	room  chan struct{} // capacity 1: something was taken
}

func newPuller(js jetstream.JetStream, sink string, lane, maxMessages int, maxBytes func() int, expires time.Duration) *puller {
	nc := js.Conn()
	return &puller{
		js: js, nc: nc, name: consumerName(sink, lane), lane: lane,
		maxMessages: maxMessages, maxBytes: maxBytes, expires: expires,
		inbox: nc.NewInbox(),
		// A request asks for no more than fits; the rest is for status messages.
		msgs:   make(chan *nats.Msg, maxMessages+64),
		failed: make(chan struct{}),
		more:   make(chan struct{}, 1), room: make(chan struct{}, 1),
	}
}

// open subscribes, without asking for messages yet. It comes before the reset, so that no
// loss of the connection after the reset goes unseen.
func (p *puller) open() error {
	p.status = p.nc.StatusChanged(nats.DISCONNECTED, nats.RECONNECTING, nats.CLOSED)
	sub, err := p.nc.ChanSubscribe(p.inbox+".*", p.msgs)
	if err != nil {
		p.nc.RemoveStatusListener(p.status)
		return fmt.Errorf("subscribe: %w", err)
	}
	p.sub = sub
	if !p.nc.IsConnected() {
		p.close()
		return errDisconnected
	}
	return nil
}

// close ends the subscription. The server knows of it before any later request of this
// connection, a reset above all.
func (p *puller) close() {
	_ = p.sub.Unsubscribe() // fails only when it has ended already
	p.nc.RemoveStatusListener(p.status)
}

// fail ends the puller for a reason; the first one counts.
func (p *puller) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = err
		close(p.failed)
	}
}

// failure returns the reason, or nil.
func (p *puller) failure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// run asks for messages whenever half of the buffer is free, until ctx ends or it fails.
// The subscription ends with it: what a standing request would still bring is the next
// owner's, also while the worker is busy with a request of its own.
func (p *puller) run(ctx context.Context) {
	defer func() { _ = p.sub.Unsubscribe() }() // fails only when it has ended already
	for n := 0; ctx.Err() == nil; n++ {
		want, err := p.awaitRoom(ctx)
		if err == nil {
			err = p.pull(ctx, want, p.inbox+"."+strconv.Itoa(n))
		}
		if err != nil {
			p.fail(err)
			return
		}
	}
}

// pullRequest is JetStream's, as its API documents it.
type pullRequest struct {
	Batch    int           `json:"batch"`
	MaxBytes int           `json:"max_bytes,omitempty"`
	Expires  time.Duration `json:"expires"`
}

func (p *puller) awaitRoom(ctx context.Context) (pullRequest, error) {
	for {
		most := p.maxBytes()
		p.mu.Lock()
		messages, bytes := p.maxMessages-len(p.queue), most-p.bytes
		p.mu.Unlock()
		if 2*messages >= p.maxMessages && 2*bytes >= most {
			// The server counts a message's own bytes only: with this it sends what takes half
			// as much again at most.
			messages = min(messages, max(bytes/(2*heldOverhead), 1))
			return pullRequest{Batch: messages, MaxBytes: bytes, Expires: p.expires}, nil
		}
		if err := p.wait(ctx, p.room); err != nil {
			return pullRequest{}, err
		}
	}
}

func (p *puller) wait(ctx context.Context, signal <-chan struct{}) error {
	select {
	case <-signal:
		return nil
	case <-p.status:
		return errDisconnected
	case <-p.failed:
		return p.failure()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// pull sends one request and queues what it brings, until it is used up or has expired.
func (p *puller) pull(ctx context.Context, want pullRequest, reply string) error {
	body, err := json.Marshal(want)
	if err != nil {
		return fmt.Errorf("encode pull request: %w", err)
	}
	subject := jetstream.DefaultAPIPrefix + "CONSUMER.MSG.NEXT." + EventsStream + "." + p.name
	failpoint.Hit("forwarder/before-pull")
	if err := p.nc.PublishRequest(subject, reply, body); err != nil {
		return fmt.Errorf("pull: %w", err)
	}
	silence := time.NewTimer(p.expires + pullSilence)
	defer silence.Stop()
	messages, bytes := 0, 0
	defer func() {
		if p.took != nil {
			p.took(messages)
		}
	}()
	for messages < want.Batch && (want.MaxBytes == 0 || bytes < want.MaxBytes) {
		select {
		case m := <-p.msgs:
			p.alive(m)
			if !strings.HasPrefix(m.Subject, p.inbox) {
				if err := p.push(m); err != nil {
					return err
				}
				messages++
				bytes += m.Size()
				silence.Reset(p.expires + pullSilence)
				continue
			}
			if m.Subject != reply {
				continue // the end of an earlier request, seen by its count before
			}
			return p.readStatus(ctx, m, messages)
		case <-silence.C:
			return errSilent
		case <-p.status:
			return errDisconnected
		case <-p.failed:
			return p.failure()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// alive reports that the consumer answers, which a 503 does not say.
func (p *puller) alive(m *nats.Msg) {
	if p.answered != nil && m.Header.Get("Status") != "503" {
		p.answered()
		p.answered = nil
	}
}

// readStatus reads the message by which the server ends a request.
func (p *puller) readStatus(ctx context.Context, m *nats.Msg, messages int) error {
	text := strings.ToLower(m.Header.Get("Description"))
	switch code := m.Header.Get("Status"); {
	case code == "404" || code == "408":
		return nil
	case code == "409" && strings.Contains(text, "exceeds maxbytes"):
		if messages > 0 {
			return nil
		}
		return p.pullLarge(ctx)
	case code == "409" && (strings.Contains(text, "batch completed") || strings.Contains(text, "leadership change")):
		return nil
	default:
		return fmt.Errorf("pull: the server answered %s %s", code, text)
	}
}

// pullLarge takes a message that does not fit: alone, once the buffer is empty.
func (p *puller) pullLarge(ctx context.Context) error {
	for {
		p.mu.Lock()
		empty := len(p.queue) == 0
		p.mu.Unlock()
		if empty {
			break
		}
		if err := p.wait(ctx, p.room); err != nil {
			return err
		}
	}
	return p.pull(ctx, pullRequest{Batch: 1, Expires: p.expires}, p.inbox+".large")
}

// push queues a message after checking that it is the next one of this consumer.
func (p *puller) push(m *nats.Msg) error {
	meta, err := m.Metadata()
	if err != nil {
		return fmt.Errorf("read metadata: %w", err)
	}
	want := p.received.Load() + 1
	switch got := meta.Sequence.Consumer; {
	case got > want:
		return fmt.Errorf("%w: consumer sequence %d after %d", errGap, got, want-1)
	case got < want:
		return fmt.Errorf("%w: consumer sequence %d after %d", errForeignReset, got, want-1)
	case meta.NumDelivered > 1:
		return fmt.Errorf("%w: stream sequence %d for the %d. time", errRedelivered, meta.Sequence.Stream, meta.NumDelivered)
	}
	h := held{msg: m, seq: meta.Sequence.Stream, arrived: time.Now(), size: m.Size()}
	h.batch, h.err = parseMessage(p.lane, m.Header, m.Data)
	m.Header = nil // it is read, and as large as a small event
	p.mu.Lock()
	p.queue = append(p.queue, h)
	p.bytes += h.memory()
	p.mu.Unlock()
	p.received.Store(want)
	failpoint.Hit("forwarder/after-pull")
	signal(p.more)
	return nil
}

// peek returns the oldest message.
func (p *puller) peek() (held, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) == 0 {
		return held{}, false
	}
	return p.queue[0], true
}

// pop removes what peek returned.
func (p *puller) pop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bytes -= p.queue[0].memory()
	p.queue[0] = held{}
	p.queue = p.queue[1:]
	if len(p.queue) == 0 {
		p.queue = nil
	}
	signal(p.room)
}

// memory is how many bytes what is buffered takes.
func (p *puller) memory() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bytes
}

var (
	ackBody  = []byte("+ACK")
	termBody = []byte("+TERM")
)

// ack answers a message, +ACK or +TERM. It does not wait: an ack that is lost with the
// connection makes the message come again, and then the worker knows it.
func (p *puller) ack(h held, body []byte) error {
	failpoint.Hit("forwarder/before-ack")
	if err := p.nc.Publish(h.msg.Reply, body); err != nil {
		return fmt.Errorf("ack: %w", err)
	}
	failpoint.Hit("forwarder/after-ack")
	p.acked.Add(1)
	return nil
}

// check compares the consumer with what was received, now and then, and fails the puller
// when messages went astray: a message that nobody delivers any more shows nowhere else.
func (p *puller) check(ctx context.Context, every time.Duration) {
	var delivered, acked uint64 // as of the previous look
	for {
		pause(ctx, every)
		if ctx.Err() != nil {
			return
		}
		received, sent := p.received.Load(), p.acked.Load()
		c, err := p.js.Consumer(ctx, EventsStream, p.name)
		if errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
			p.fail(err)
			return
		}
		if err != nil {
			continue // no answer says nothing; a silent consumer shows in the pull requests
		}
		info := c.CachedInfo()
		now := info.Delivered.Consumer
		switch {
		case now < received:
			err = fmt.Errorf("%w: it has delivered %d and this worker received %d", errForeignReset, now, received)
		case delivered > p.received.Load():
			err = fmt.Errorf("%w: %d were delivered and %d received", errGap, delivered, p.received.Load())
		case uint64(info.NumAckPending)+acked > now:
			// Acks sent before the previous look have long been applied.
			err = fmt.Errorf("%w: %d un-acked of %d delivered, %d acked", errUnheld, info.NumAckPending, now, acked)
		}
		if err != nil {
			p.fail(err)
			return
		}
		delivered, acked = now, sent
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
