package bench

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// stub answers calls after a time.
type stub struct {
	takes func(call int64) time.Duration
	err   error
	calls atomic.Int64
	most  atomic.Int64 // calls in flight at once
	now   atomic.Int64
}

func (s *stub) send(ctx context.Context, _ *call) outcome {
	s.most.Store(max(s.most.Load(), s.now.Add(1)))
	defer s.now.Add(-1)
	pause(ctx, s.takes(s.calls.Add(1)-1))
	return outcome{err: s.err}
}

func (*stub) close() error { return nil }

func mustGenerator(t *testing.T, load Load, s sender) *generator {
	t.Helper()
	l := newLedger(time.Now())
	calls, err := load.content().deal(l.run)
	if err != nil {
		t.Fatal(err)
	}
	return &generator{
		load: load, ledger: l, sender: s, messages: []message{encodeBatch(calls[0])},
		accept: newLatencies(), lag: newLatencies(), errs: map[string]int64{}, opened: make(chan struct{}), exhausted: make(chan struct{}),
	}
}

// runFor lets a generator run, measured from the beginning.
func runFor(t *testing.T, g *generator, length time.Duration) {
	t.Helper()
	stop := make(chan struct{})
	g.openWindow(time.Now())
	var wg sync.WaitGroup
	wg.Go(func() { g.run(t.Context(), stop) })
	time.Sleep(length)
	close(stop)
	wg.Wait()
}

func TestOpenLoopCallsAtItsTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stub{takes: func(int64) time.Duration { return 30 * time.Millisecond }}
		load := standard("open")
		load.Rate = 10_000 // a call each 10 ms
		g := mustGenerator(t, load, s)
		runFor(t, g, time.Second-time.Millisecond)
		if n := s.calls.Load(); n != 100 {
			t.Errorf("%d calls in a second; want 100", n)
		}
		if q := quantilesOf(g.accept.merged()); q.P50 < 29.9 || q.Max > 30.1 {
			t.Errorf("latencies %+v; want 30 ms", q)
		}
		if why := g.saturated(g.lag.merged()); why != "" {
			t.Errorf("saturated: %s", why)
		}
		if n := g.ledger.accepted.Load(); n != 10_000 {
			t.Errorf("%d events are accepted; want 10,000", n)
		}
	})
}

// TestOpenLoopCountsFromTheIntendedTime: a server that stands still for a second delays the
// calls that were due meanwhile, and their latencies say so.
func TestOpenLoopCountsFromTheIntendedTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &serial{turn: make(chan struct{}, 1), stub: stub{takes: func(call int64) time.Duration {
			if call == 10 {
				return time.Second
			}
			return 0
		}}}
		load := standard("stall")
		load.Rate = 10_000
		g := mustGenerator(t, load, s)
		runFor(t, g, 3*time.Second-time.Millisecond)
		h := g.accept.merged()
		late := 0.0
		for _, bar := range h.Distribution() {
			if bar.From > int64(100*time.Millisecond/latencyUnit) {
				late += float64(bar.Count)
			}
		}
		// 100 calls were due while it stood still, all but the last ten by more than 100 ms.
		if late < 85 || late > 95 {
			t.Errorf("%v of %d calls took more than 100 ms; want about 90", late, h.TotalCount())
		}
	})
}

// serial makes one call at a time, as on one connection.
type serial struct {
	stub
	turn chan struct{}
}

func (s *serial) send(ctx context.Context, c *call) outcome {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	return s.stub.send(ctx, c)
}

func TestSaturationIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stub{takes: func(int64) time.Duration { return time.Hour }}
		load := standard("full")
		load.Events, load.Rate = 1, 100_000
		g := mustGenerator(t, load, s)
		ctx, cancel := context.WithCancel(t.Context())
		g.openWindow(time.Now())
		var wg sync.WaitGroup
		wg.Go(func() { g.run(ctx, nil) })
		time.Sleep(time.Second)
		cancel()
		wg.Wait()
		if why := g.saturated(g.lag.merged()); why == "" || s.most.Load() > maxInFlight {
			t.Errorf("saturated: %q, %d calls in flight; want a word, and at most %d calls", why, s.most.Load(), maxInFlight)
		}
	})
}

func TestClosedLoopHasItsCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stub{takes: func(int64) time.Duration { return 10 * time.Millisecond }}
		load := standard("closed")
		load.Callers = 7
		g := mustGenerator(t, load, s)
		runFor(t, g, time.Second-time.Millisecond)
		if n, most := s.calls.Load(), s.most.Load(); n != 700 || most != 7 {
			t.Errorf("%d calls, %d at once; want 700 and 7", n, most)
		}
	})
}

func TestCountIsExact(t *testing.T) {
	s := &stub{takes: func(int64) time.Duration { return 0 }}
	load := standard("count")
	load.Events, load.Callers, load.Count = 1, 7, 1000
	g := mustGenerator(t, load, s)
	g.openWindow(time.Now())
	g.run(t.Context(), nil)
	if n := s.calls.Load(); n != 1000 || !closed(g.exhausted) {
		t.Errorf("%d calls; want 1000, and the window closed", n)
	}
}

func TestFailedCallsAreNotAccepted(t *testing.T) {
	for _, unknown := range []bool{true, false} {
		s := &stub{takes: func(int64) time.Duration { return 0 }}
		load := standard("failing")
		load.Callers = 1
		g := mustGenerator(t, load, s)
		c := g.prepare(0, time.Now())
		g.answered(0, c, time.Now(), outcome{err: errors.New("no"), unknown: unknown})
		c = g.prepare(1, time.Now())
		g.answered(1, c, time.Now(), outcome{refused: []int{0, 99}})
		v := g.ledger.judge("s", ingressSink)
		if v.OK() || v.Misjudged != 2 || v.Accepted != 98 || v.Refused+v.Unknown != 102 || (v.Unknown == 100) != unknown || g.errs["no"] != 1 {
			t.Errorf("%+v, %v", v, g.errs)
		}
	}
}

// TestInvalidEventsMustBeRefused: exactly the invalid ones of a call.
func TestInvalidEventsMustBeRefused(t *testing.T) {
	load := standard("invalid")
	load.Callers, load.Invalid = 1, 0.1
	g := mustGenerator(t, load, &stub{})
	bad := g.messages[0].bad
	if len(bad) < 2 || len(bad) > 25 {
		t.Fatalf("%d of 100 events are invalid; want about 10", len(bad))
	}
	for i, test := range []struct {
		refused   []int
		misjudged int64
	}{{bad, 0}, {bad[1:], 1}, {nil, 1 + int64(len(bad))}} {
		c := g.prepare(int64(i), time.Now())
		g.answered(int64(i), c, time.Now(), outcome{refused: test.refused})
		if n := g.ledger.misjudged.Load(); n != test.misjudged {
			t.Errorf("%v refused: %d events are misjudged so far; want %d", test.refused, n, test.misjudged)
		}
	}
}

func TestValidateLoad(t *testing.T) {
	good := standard("good")
	good.Callers = 1
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Load){
		"neither":          func(l *Load) { l.Callers = 0 },
		"both":             func(l *Load) { l.Rate = 1 },
		"batches by HTTP":  func(l *Load) { l.Transport = overHTTP },
		"no keys":          func(l *Load) { l.Keys = 0 },
		"no time":          func(l *Load) { l.For = 0 },
		"negative warm-up": func(l *Load) { l.WarmUp = -1 },
	} {
		l := good
		if change(&l); l.Validate() == nil {
			t.Errorf("%s passes", name)
		}
	}
}

// TestFellBehind: by what is accepted and what queues up, not by a generator that was late now and
// then.
func TestFellBehind(t *testing.T) {
	for _, test := range []struct {
		accepted, rate float64
		growth         int64
		delivers       bool
		saturated      string
		why            string
	}{
		{1000, 1000, 0, true, "", ""},
		{980, 1000, 900, true, "late", ""},
		{960, 1000, 0, true, "", "960/s were accepted"},
		{500, 1000, 0, true, "late", "500/s were accepted; late"},
		{1000, 1000, 1001, true, "", "1001 more events waited for ingress at the end of the window than at its beginning"},
		{1000, 1000, 1001, false, "", ""},
	} {
		st := &Stage{Load: Load{Rate: test.rate}, AcceptRate: test.accepted, BacklogGrowth: map[string]int64{ingressSink: test.growth}, Saturated: test.saturated}
		if why := fellBehind(st, test.delivers); why != test.why {
			t.Errorf("%+v: %q; want %q", test, why, test.why)
		}
	}
}
