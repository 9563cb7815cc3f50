package pipeline

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// answers counts what the done functions of a test got.
type answers struct {
	mu   sync.Mutex // guards got
	got  map[string][]error
	told chan string // every id, as it is answered
}

func newAnswers(most int) *answers {
	return &answers{got: map[string][]error{}, told: make(chan string, most)}
}

// done returns the function for one event.
func (a *answers) done(id string) func(error) {
	return func(err error) {
		a.mu.Lock()
		a.got[id] = append(a.got[id], err)
		a.mu.Unlock()
		a.told <- id
	}
}

// next waits for the next answer and returns its id.
func (a *answers) next(t testing.TB) string {
	t.Helper()
	select {
	case id := <-a.told:
		return id
	case <-time.After(patience):
		t.Fatal("no done function is called")
		return ""
	}
}

// mustBeOnce fails unless each id has had one answer, which was nil.
func (a *answers) mustBeOnce(t testing.TB, ids ...string) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.got) != len(ids) {
		t.Errorf("%d events have answers, want %d", len(a.got), len(ids))
	}
	for _, id := range ids {
		if got := a.got[id]; len(got) != 1 || got[0] != nil {
			t.Errorf("event %s was answered %v, want nil once", id, got)
		}
	}
}

// done is called once for each event, in the order of the commits, and what the caller does with the
// event's memory afterwards changes nothing.
func TestEmitAsync(t *testing.T) {
	r := mustRig(t)
	e, _ := r.mustEmitter(t, nil)
	const n = 2000
	a := newAnswers(n)
	var ids []string
	data := []byte("data")
	for i := range n {
		id := fmt.Sprint(i)
		ids = append(ids, id)
		e.EmitAsync(t.Context(), CloudEvent{Source: "/s", Type: "t", ID: id, Data: BinaryData(data)}, a.done(id))
		data[0]++
	}
	for i := range n {
		if id := a.next(t); id != ids[i] {
			t.Fatalf("answer %d is of event %s", i, id)
		}
	}
	a.mustBeOnce(t, ids...)
	if got := r.stored(t, "/s"); !slices.Equal(got, ids) {
		t.Error("the events are not stored in the order in which they were emitted")
	}
	if n := mustCount(t, r.store, `SELECT count(*) FROM waybill.events WHERE position('data'::bytea IN event) > 0`); n != 8 {
		t.Errorf("%d events hold the first data; want every 256th, which is 8", n)
	}
	eventually(t, patience, "no call counts as not returned", func() bool { return e.calls.fill() == 0 }) // after its done function
}

// A done function that does not return holds up no transaction: what waits behind it counts
// towards the bound, and beyond it done gets ErrOverloaded at once.
func TestSlowDoneIsBounded(t *testing.T) {
	r := mustRig(t)
	e, _ := r.mustEmitter(t, func(c *EmitterConfig) { c.AsyncEvents = 3 })
	a := newAnswers(10)
	blocked, released := make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(released) })
	defer release()
	e.EmitAsync(t.Context(), emitted("/s", "slow"), func(err error) {
		close(blocked)
		<-released
		a.done("slow")(err)
	})
	<-blocked
	e.EmitAsync(t.Context(), emitted("/s", "1"), a.done("1"))
	e.EmitAsync(t.Context(), emitted("/s", "2"), a.done("2"))
	var refused error
	calls := 0
	e.EmitAsync(t.Context(), emitted("/s", "3"), func(err error) { refused, calls = err, calls+1 })
	if calls != 1 || !errors.Is(refused, ErrOverloaded) {
		t.Fatalf("beyond the bound done was called %d times, with %v", calls, refused)
	}
	patient, cancel := context.WithTimeout(t.Context(), patience/4)
	defer cancel()
	for i := range 5 {
		if err := e.Emit(patient, emitted("/other", fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	buffers := e.Buffers()
	if b := buffers[0]; b.Used != 3 || b.Limit != 3 {
		t.Errorf("the buffer of done functions is %+v", b)
	}
	if err := e.Health(); err == nil || !strings.Contains(err.Error(), "whose done has not returned: 3 of 3") {
		t.Errorf("the health is %v", err)
	}
	release()
	for _, want := range []string{"slow", "1", "2"} {
		if id := a.next(t); id != want {
			t.Errorf("%s is answered where %s should be", id, want)
		}
	}
	a.mustBeOnce(t, "slow", "1", "2")
	eventually(t, patience, "there is room again", func() bool {
		answered := make(chan error, 1)
		e.EmitAsync(t.Context(), emitted("/s", "4"), func(err error) { answered <- err })
		return <-answered == nil
	})
	if got := r.stored(t, "/s"); !slices.Equal(got, []string{"slow", "1", "2", "4"}) {
		t.Errorf("stored %v", got)
	}
}

// A done function that ends its goroutine, as a test's FailNow does, takes no other answer
// with it.
func TestDoneThatEndsItsGoroutine(t *testing.T) {
	r := mustRig(t)
	e, stop := r.mustEmitter(t, nil)
	const n = 50
	a := newAnswers(n)
	var ids []string
	for i := range n {
		id := fmt.Sprint(i)
		ids = append(ids, id)
		done := a.done(id)
		e.EmitAsync(t.Context(), emitted("/s", id), func(err error) {
			done(err)
			if i%7 == 0 || i == n-1 {
				runtime.Goexit()
			}
		})
	}
	for range n {
		a.next(t)
	}
	a.mustBeOnce(t, ids...)
	again := newAnswers(1)
	e.EmitAsync(t.Context(), emitted("/s", "after"), again.done("after"))
	again.next(t)
	stop()
}

// Of what is emitted while an emitter stops each call has one answer; what was answered with nil
// is stored once, what was answered with ErrUnavailable is not, and the order of each key is
// that in which it was emitted.
func TestEmitterStopsUnderLoad(t *testing.T) {
	r := mustRig(t)
	e, stop := r.mustEmitter(t, nil)
	const callers = 24
	type outcome struct {
		id  string
		err error
	}
	var wg sync.WaitGroup
	var begun, answered atomic.Int64
	results := make([][]outcome, callers)
	stopping := make(chan struct{})
	for c := range callers {
		source := fmt.Sprint("/caller/", c)
		wg.Go(func() {
			var mu sync.Mutex
			var waiting sync.WaitGroup
			note := func(id string, err error) {
				answered.Add(1)
				mu.Lock()
				defer mu.Unlock()
				results[c] = append(results[c], outcome{id, err})
			}
			for i := 0; ; i++ {
				event := emitted(source, fmt.Sprintf("%06d", i))
				begun.Add(1)
				if c%3 == 0 {
					waiting.Add(1)
					e.EmitAsync(t.Context(), event, func(err error) { note(event.ID, err); waiting.Done() })
				} else if c%3 == 1 {
					note(event.ID, e.Emit(t.Context(), event))
				} else {
					note(event.ID, e.EmitBatch(t.Context(), event))
				}
				select {
				case <-stopping:
					waiting.Wait()
					return
				default:
				}
			}
		})
	}
	eventually(t, patience, "there is load", func() bool { return answered.Load() > 500 })
	go func() { time.Sleep(20 * time.Millisecond); close(stopping) }() // some calls come after the stop
	stop()
	wg.Wait()
	if begun.Load() != answered.Load() {
		t.Errorf("%d calls have %d answers", begun.Load(), answered.Load())
	}
	for c, outcomes := range results {
		var ok []string
		for _, o := range outcomes {
			switch {
			case o.err == nil:
				ok = append(ok, o.id)
			case !errors.Is(o.err, ErrUnavailable) && !errors.Is(o.err, ErrOverloaded):
				t.Errorf("caller %d was answered %v", c, o.err)
			}
		}
		slices.Sort(ok) // the ids are in the order in which they were emitted
		if got := r.stored(t, fmt.Sprint("/caller/", c)); !slices.Equal(got, ok) {
			t.Errorf("caller %d has %d events stored, and was told so of %d, or in another order", c, len(got), len(ok))
		}
	}
	assertDense(t, r.store)
}

// Run does not return before all that was emitted has its answer.
func TestStopWaitsForWhatWasEmitted(t *testing.T) {
	r := mustRig(t)
	e := r.mustNewEmitter(t, nil)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ran := make(chan error, 1)
	go func() { ran <- e.Run(ctx) }()
	mustBeReady(t, e)
	if err := e.Emit(t.Context(), emitted("/s", "0")); err != nil {
		t.Fatal(err)
	}
	release := mustHoldHeads(t, r.store)
	const n = 6
	answered := make(chan error, n)
	note := func(err error) { answered <- err }
	e.EmitAsync(t.Context(), emitted("/s", "1"), note)
	eventually(t, patience, "its transaction waits", func() bool {
		return mustCount(t, r.store, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) == 1
	})
	go func() { note(e.Emit(t.Context(), emitted("/s", "2"))) }()
	in := e.ingester.Load()
	eventually(t, patience, "one waits behind it", func() bool { events, _ := in.queueFill(); return events == 1 })
	for i := 2; i < n; i++ {
		e.EmitAsync(t.Context(), emitted("/s", fmt.Sprint(i+1)), note)
	}
	cancel()
	select {
	case err := <-ran:
		t.Fatalf("Run returned %v while events waited", err)
	case <-time.After(300 * time.Millisecond):
	}
	release()
	if err := <-ran; err != nil {
		t.Fatal(err)
	}
	for range n {
		if err := <-answered; err != nil {
			t.Error(err)
		}
	}
	if stored := r.stored(t, "/s"); len(stored) != n+1 {
		t.Errorf("stored %v", stored)
	}
}

// A done function that never returns delays the stop by no more than the bound, and the error
// says why; what is behind it is called all the same when it returns.
func TestStopDoesNotWaitForDone(t *testing.T) {
	r := mustRig(t)
	e := r.mustNewEmitter(t, func(c *EmitterConfig) { c.Ingester.StopTimeout = 500 * time.Millisecond })
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ran := make(chan error, 1)
	go func() { ran <- e.Run(ctx) }()
	mustBeReady(t, e)
	release := make(chan struct{})
	blocked := make(chan struct{})
	a := newAnswers(2)
	e.EmitAsync(t.Context(), emitted("/s", "1"), func(err error) { close(blocked); <-release; a.done("1")(err) })
	<-blocked
	e.EmitAsync(t.Context(), emitted("/s", "2"), a.done("2"))
	cancel()
	select {
	case err := <-ran:
		if err == nil || !strings.Contains(err.Error(), "done functions of 2 events have not returned") {
			t.Errorf("Run ended with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("Run waits for a done function without end")
	}
	close(release)
	a.next(t)
	a.next(t)
	a.mustBeOnce(t, "1", "2")
}

// done must be given.
func TestEmitAsyncWithoutDone(t *testing.T) {
	r := mustRig(t)
	defer func() {
		if recover() == nil {
			t.Error("EmitAsync takes an event without a done function")
		}
	}()
	r.mustNewEmitter(t, nil).EmitAsync(t.Context(), emitted("/s", "1"), nil)
}

// What is answered and waits for a done function that does not return takes no more memory than its bookkeeping.
func TestAnsweredEventsTakeNoMemory(t *testing.T) {
	r := mustRig(t)
	e, _ := r.mustEmitter(t, nil)
	released := make(chan struct{})
	release := sync.OnceFunc(func() { close(released) })
	defer release()
	const n, size = 100, 1 << 20
	a := newAnswers(n)
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	data := make([]byte, size-1000)
	var ids []string
	for i := range n {
		id := fmt.Sprint(i)
		ids = append(ids, id)
		e.EmitAsync(t.Context(), CloudEvent{Source: "/s", Type: "t", ID: id, Data: BinaryData(data)}, func(err error) {
			<-released
			a.done(id)(err)
		})
		if i%10 == 9 {
			eventually(t, patience, "they are stored", func() bool { return r.pending(t) == i+1 })
		}
	}
	in := e.ingester.Load()
	eventually(t, patience, "they are published", func() bool { bytes, _ := in.publisher.queueFill(); return bytes == 0 })
	eventually(t, patience, "their memory is free", func() bool { return heap() < before+n*size/4 })
	release()
	for range n {
		a.next(t)
	}
	a.mustBeOnce(t, ids...)
}
