package bench

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// transport is how calls are made.
type transport string

const (
	overGRPC   transport = "grpc"   // Publish or PublishBatch
	overStream transport = "stream" // StreamEvents
	overHTTP   transport = "http"   // binary mode
	// overEmitter is no transport: an emitter in this process.
	overEmitter transport = "emitter"
	overOutbox  transport = "outbox" // a transaction of the caller's
)

// Load is what is sent in a stage. Start from a scenario's defaults.
type Load struct {
	// Name of the stage.
	Name string `json:"name"`
	// Transport is grpc, stream, http, outbox or emitter.
	Transport transport `json:"transport"`
	// Bytes of data of an event; Events of a call; number of Keys.
	Bytes  int `json:"bytes"`
	Events int `json:"events_per_call"`
	Keys   int `json:"keys"`
	// Mix makes bodies and keys as a web site has them, whatever Bytes and Keys say. Invalid
	// is the share of events, 0 to 1, that ingest must refuse; only calls of several have any.
	Mix     bool    `json:"mix,omitempty"`
	Invalid float64 `json:"invalid,omitempty"`
	// Trace names the recorded pattern whose rows the calls are, one event each and Speed times as
	// fast; Rate is then their mean, and Bytes and Keys say what the pattern has.
	Trace string  `json:"trace,omitempty"`
	Speed float64 `json:"speed,omitempty"`
	// Rate is events/s of an open loop; 0: a closed loop of Callers.
	Rate    float64 `json:"rate"`
	Callers int     `json:"callers"`
	// Connections that the calls share.
	Connections int `json:"connections"`
	// Count ends the window after so many events; 0: only For ends it.
	Count int64 `json:"count"`
	// WarmUp and For are the lengths of the warm-up and of the measured window.
	WarmUp time.Duration `json:"warm_up_ns"`
	For    time.Duration `json:"for_ns"`

	trace *trace // nil: calls at equal intervals
}

// Validate names the first setting that cannot work.
func (l Load) Validate() error {
	switch {
	case l.Bytes < 0:
		return fmt.Errorf("bytes: %d; want 0 or more", l.Bytes)
	case l.Events < 1 || l.Keys < 1 || l.Connections < 1:
		return fmt.Errorf("events per call: %d, keys: %d, connections: %d; want 1 or more of each", l.Events, l.Keys, l.Connections)
	case l.Events > 1 && l.Transport != overGRPC && l.Transport != overOutbox:
		return fmt.Errorf("events per call: %d; over %s a call has 1", l.Events, l.Transport)
	case (l.Mix || l.Invalid > 0) && l.Transport != overGRPC || l.Invalid > 0 && l.Events == 1:
		return fmt.Errorf("mixed or invalid events over %s, %d a call; want grpc, and several a call for invalid ones", l.Transport, l.Events)
	case l.Invalid < 0 || l.Invalid > 1:
		return fmt.Errorf("invalid: %v; want a share from 0 to 1", l.Invalid)
	case l.Rate < 0 || (l.Rate == 0) != (l.Callers > 0):
		return fmt.Errorf("rate: %v, callers: %d; want a rate for an open loop, or callers and no rate for a closed one", l.Rate, l.Callers)
	case l.trace != nil && (l.Transport != overGRPC || l.Events != 1 || l.Rate == 0 || l.Speed <= 0):
		return fmt.Errorf("a trace over %s, %d events a call, at %v events/s, %v times as fast; want grpc, 1 event, and a positive rate and speed", l.Transport, l.Events, l.Rate, l.Speed)
	case l.For <= 0 || l.WarmUp < 0:
		return fmt.Errorf("for: %v, warm-up: %v; want a positive and a non-negative duration", l.For, l.WarmUp)
	}
	return nil
}

func (l Load) content() content {
	return content{bytes: l.Bytes, perCall: l.Events, keys: l.Keys, mix: l.Mix, invalid: l.Invalid}
}

const (
	// maxInFlight bounds the calls in flight of an open loop: far above what is in flight
	// as long as the system keeps up.
	maxInFlight = 8192
	// saturatedLag is how late the generator may begin one call in a hundred.
	saturatedLag = 10 * time.Millisecond
	// streamWindow is how many events without an answer a stream of a closed loop has.
	streamWindow = 512
	// failurePause keeps a closed loop from spinning while all calls fail.
	failurePause = 10 * time.Millisecond
)

// generator makes the calls of a load.
type generator struct {
	load     Load
	ledger   *ledger
	sender   sender
	messages []message
	trace    *traceCalls // nil: the messages, one after another

	accept *latencies // from when a call was due, of the window
	lag    *latencies // of the generator itself
	full   atomic.Int64
	calls  atomic.Int64
	// window is when the measured part began, in nanoseconds of Unix time; 0: not yet. opened is
	// closed then.
	window atomic.Int64
	opened chan struct{}
	// taken counts the events of the window, where their number is fixed; exhausted is
	// closed when that is reached.
	taken     atomic.Int64
	exhaust   sync.Once
	exhausted chan struct{}

	mu   sync.Mutex // guards errs
	errs map[string]int64
}

// addresses are where calls go: to an ingest, or to the servers of the pipeline.
type addresses struct {
	http, grpc     string
	database, nats string // of an emitter
}

// newGenerator prepares calls.
func newGenerator(load Load, l *ledger, to addresses) (*generator, error) {
	if err := load.Validate(); err != nil {
		return nil, fmt.Errorf("stage %s: %w", load.Name, err)
	}
	g := &generator{load: load, ledger: l, accept: newLatencies(), lag: newLatencies(), errs: map[string]int64{}, opened: make(chan struct{}), exhausted: make(chan struct{})}
	var encode encode
	var err error
	switch load.Transport {
	case overGRPC:
		encode = encodeBatch
		if load.Events == 1 {
			encode = encodeEvent
		}
		g.sender, err = newUnarySender(to.grpc, load.Connections)
	case overStream:
		encode = encodeStream
		g.sender, err = newStreamSender(to.grpc, load.Connections)
	case overHTTP:
		var target *url.URL
		if target, err = url.Parse(to.http); err != nil {
			return nil, fmt.Errorf("stage %s: HTTP address: %w", load.Name, err)
		}
		if target.Path == "" {
			target.Path = "/v1/events"
		}
		encode = encodeHTTP(target)
		g.sender = newHTTPSender(target, load.Connections)
	case overOutbox:
		encode = encodeBatch
		g.sender, err = newOutboxSender(to.database, load.Connections)
	case overEmitter:
		encode = encodeEmitted
		g.sender, err = newEmitterSender(to.database, to.nats)
	default:
		return nil, fmt.Errorf("stage %s: transport %q; want grpc, stream, http, outbox or emitter", load.Name, load.Transport)
	}
	if err != nil {
		return nil, fmt.Errorf("stage %s: %w", load.Name, err)
	}
	if err := g.makeMessages(encode); err != nil {
		return nil, errors.Join(fmt.Errorf("stage %s: %w", load.Name, err), g.sender.close())
	}
	return g, nil
}

func (g *generator) makeMessages(encode encode) (err error) {
	if g.load.trace != nil {
		g.trace, err = newTraceCalls(g.load.trace, g.ledger.run)
		return err
	}
	calls, err := g.load.content().deal(g.ledger.run)
	for _, events := range calls {
		g.messages = append(g.messages, encode(events))
	}
	return err
}

// openWindow lets what is due from now on be measured.
func (g *generator) openWindow(at time.Time) {
	g.window.Store(at.UnixNano())
	close(g.opened)
}

// run makes calls until stop is closed or ctx ends, and returns when all are answered.
func (g *generator) run(ctx context.Context, stop <-chan struct{}) {
	switch {
	case g.trace != nil:
		select { // a pattern begins with the window
		case <-g.opened:
			g.open(ctx, stop, byRows(g.trace.rows, g.load.Speed))
			g.exhaust.Do(func() { close(g.exhausted) })
		case <-stop:
		case <-ctx.Done():
		}
	case g.load.Rate > 0:
		g.open(ctx, stop, byRate(g.load))
	default:
		g.closed(ctx, stop)
	}
}

// schedule says how long after the first a call of an open loop is due, and whether there is one.
type schedule func(call int64) (since time.Duration, more bool)

// byRate is calls at equal intervals, without an end.
func byRate(l Load) schedule {
	interval := time.Duration(float64(time.Second) * float64(l.Events) / l.Rate)
	return func(call int64) (time.Duration, bool) { return time.Duration(call) * interval, true }
}

// byRows is a call a row of a trace, at its time.
func byRows(rows []arrival, speed float64) schedule {
	return func(call int64) (time.Duration, bool) {
		if call >= int64(len(rows)) {
			return 0, false
		}
		return time.Duration(float64(rows[call].at) / speed), true
	}
}

// open makes each call at its time, whatever became of the earlier ones.
func (g *generator) open(ctx context.Context, stop <-chan struct{}, s schedule) {
	start := time.Now()
	slots := make(chan struct{}, maxInFlight)
	var wg sync.WaitGroup
	defer wg.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i := int64(0); ; i++ {
		since, more := s(i)
		if !more {
			return
		}
		due := start.Add(since)
		if wait := time.Until(due); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-stop:
				return
			case <-ctx.Done():
				return
			}
		} else if closed(stop) || ctx.Err() != nil {
			return
		}
		if !g.more() {
			return
		}
		select {
		case slots <- struct{}{}:
		default:
			g.full.Add(1)
			slots <- struct{}{}
		}
		if g.measures(due) {
			g.lag.record(i, time.Since(due))
		}
		wg.Add(1)
		g.begin(ctx, i, due, func() { <-slots; wg.Done() })
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// begin makes a call and returns at once.
func (g *generator) begin(ctx context.Context, i int64, due time.Time, done func()) {
	c := g.prepare(i, due)
	p, ok := g.sender.(pipelined)
	if !ok {
		go func() { defer done(); g.answered(i, c, due, g.sender.send(ctx, c)) }()
		return
	}
	p.begin(ctx, int(i%int64(p.connections())), c, func(o outcome) { defer done(); g.answered(i, c, due, o) })
}

func (g *generator) prepare(i int64, due time.Time) *call {
	var m *message
	if g.trace != nil {
		m = g.trace.message(i)
	} else {
		m = &g.messages[i%int64(len(g.messages))]
	}
	return &call{message: m, ledger: g.ledger, first: g.ledger.reserve(len(m.ids), due)}
}

// answered takes note of the end of a call that was due at a time.
func (g *generator) answered(i int64, c *call, due time.Time, o outcome) {
	now := time.Now()
	c.settle(o, g.ledger.tickOf(now))
	if o.err != nil {
		g.failure(o.err)
	}
	if g.measures(due) {
		g.calls.Add(1)
		if o.err == nil {
			g.accept.record(i, now.Sub(due))
		}
	}
}

// more reports whether another call may be made: not once the window has as many events as
// are wanted.
func (g *generator) more() bool {
	if g.load.Count == 0 || g.window.Load() == 0 || g.taken.Add(int64(g.load.Events)) <= g.load.Count {
		return true
	}
	g.exhaust.Do(func() { close(g.exhausted) })
	return false
}

func (g *generator) measures(due time.Time) bool {
	window := g.window.Load()
	return window != 0 && due.UnixNano() >= window
}

func (g *generator) failure(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	text := err.Error()
	if _, known := g.errs[text]; !known && len(g.errs) >= maxFaults {
		text = "others"
	}
	g.errs[text]++
}

// closed makes calls on each caller's behalf as fast as they are answered.
func (g *generator) closed(ctx context.Context, stop <-chan struct{}) {
	var next atomic.Int64
	var wg sync.WaitGroup
	defer wg.Wait()
	if p, ok := g.sender.(pipelined); ok {
		for connection := range p.connections() {
			wg.Go(func() { g.streamClosed(ctx, stop, p, connection, &next) })
		}
		return
	}
	for range g.load.Callers {
		wg.Go(func() {
			for !closed(stop) && ctx.Err() == nil && g.more() {
				due := time.Now()
				i := next.Add(1) - 1
				c := g.prepare(i, due)
				o := g.sender.send(ctx, c)
				g.answered(i, c, due, o)
				if o.err != nil {
					pause(ctx, failurePause)
				}
			}
		})
	}
}

// streamClosed keeps a connection's window full.
func (g *generator) streamClosed(ctx context.Context, stop <-chan struct{}, p pipelined, connection int, next *atomic.Int64) {
	window := make(chan struct{}, streamWindow)
	var wg sync.WaitGroup
	defer wg.Wait()
	for !closed(stop) && ctx.Err() == nil && g.more() {
		window <- struct{}{}
		due := time.Now()
		i := next.Add(1) - 1
		c := g.prepare(i, due)
		wg.Add(1)
		p.begin(ctx, connection, c, func(o outcome) {
			g.answered(i, c, due, o)
			release := func() { <-window; wg.Done() }
			if o.err != nil {
				time.AfterFunc(failurePause, release)
				return
			}
			release()
		})
	}
}

// saturated says why the latencies of an open loop say nothing; empty: they do.
func (g *generator) saturated(lag *hdrhistogram.Histogram) string {
	switch late := time.Duration(lag.ValueAtPercentile(99)) * latencyUnit; {
	case g.load.Rate == 0:
		return ""
	case g.full.Load() > 0:
		return fmt.Sprintf("%d calls were in flight, the most there may be", maxInFlight)
	case late > saturatedLag:
		return fmt.Sprintf("the generator began one call in a hundred %v late or later", late.Round(time.Millisecond))
	}
	return ""
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
