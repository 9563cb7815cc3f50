package replay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/pipeline"
)

// mustFill publishes batches 1 to n, each of two events, in two lanes in turn.
func (s *site) mustFill(t *testing.T, n int64) {
	t.Helper()
	for i := int64(1); i <= n; i++ {
		s.mustPublish(t, message{number: i, lane: int(i % 2), events: []string{fmt.Sprintf("%d.0", i), fmt.Sprintf("even:%d.1", i)}})
	}
}

// ids are those of the batches in a lane, as mustFill makes them.
func ids(from, to int64, lane int) (out []string) {
	for i := from; i <= to; i++ {
		if int(i%2) == lane {
			out = append(out, fmt.Sprintf("%d.0", i), fmt.Sprintf("even:%d.1", i))
		}
	}
	return out
}

func TestReplayOfASpanOfTheStream(t *testing.T) {
	s := mustSite(t)
	s.mustFill(t, 40)
	at := func(text string) Point { return mustPoint(t, text) }
	for _, test := range []struct {
		name   string
		change func(*Config)
		want   map[int][]string
	}{
		{"all", func(*Config) {}, map[int][]string{0: ids(1, 40, 0), 1: ids(1, 40, 1)}},
		{"since and until", func(c *Config) { c.Since, c.Until = second(t, 10), second(t, 20) }, map[int][]string{0: ids(10, 19, 0), 1: ids(10, 19, 1)}},
		{"sequences", func(c *Config) { c.Since, c.Until = at("10"), at("20") }, map[int][]string{0: ids(10, 20, 0), 1: ids(10, 20, 1)}},
		{"from a sequence", func(c *Config) { c.Since = at("39") }, map[int][]string{0: ids(39, 40, 0), 1: ids(39, 40, 1)}},
		{"a lane", func(c *Config) { c.Lanes = []int{1}; c.Until = second(t, 5) }, map[int][]string{1: ids(1, 4, 1)}},
		{"a type", func(c *Config) { c.Type, c.Until = "even", second(t, 4) }, map[int][]string{0: {"even:2.1"}, 1: {"even:1.1", "even:3.1"}}},
		{"types", func(c *Config) { c.Type, c.Source, c.Until = "ev*", "/sou*", second(t, 2) }, map[int][]string{1: {"even:1.1"}}},
		{"another source", func(c *Config) { c.Source = "/sou" }, map[int][]string{}},
		{"nothing", func(c *Config) { c.Since = second(t, 100) }, map[int][]string{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			sink := newRecorder()
			sink.limits.Events = 3 // no batch's, and no multiple of one
			result := mustReplay(t, s.config(sink, test.change))
			want := 0
			for lane, ids := range test.want {
				want += len(ids)
				if got := sink.lane(lane); !slices.Equal(got, ids) {
					t.Errorf("lane %d has %v, want %v", lane, got, ids)
				}
			}
			if result.Events != int64(want) || sink.total() != want || result.Refused != 0 || len(result.Missing) > 0 || result.From != FromStream {
				t.Errorf("%+v, want %d events", result, want)
			}
			if want > 0 && (!sink.marks["test"] || len(sink.marks) != 1) {
				t.Errorf("the events carry the replayids %v", sink.marks)
			}
		})
	}
}

// A batch may be in the stream several times, and long after it was accepted.
func TestReplayOfWhatWasQueuedAgain(t *testing.T) {
	s := mustSite(t)
	s.mustPublish(t,
		message{number: 1, events: []string{"1.0", "1.1"}},
		message{number: 2, events: []string{"2.0"}},
		message{number: 1, attempt: 1, queued: 3, events: []string{"1.0", "1.1"}},
		message{number: 4, events: []string{"1.1"}, acceptedOverride: 1, queued: 4, origin: batchID(1).String() + "/1"},
		message{number: 5, acceptedOverride: 2, queued: 9000, attempt: 2, events: []string{"late"}}, // beyond the margin
		message{number: 6, acceptedOverride: 2, queued: 9001, events: []string{"of another"}, origin: batchID(77).String() + "/0"},
		message{number: 7, acceptedOverride: 2, queued: 9001, events: []string{"of another"}, origin: batchID(77).String() + "/0"}, // for a second sink
		message{number: 8, acceptedOverride: 2, queued: 9001, events: []string{"its neighbour"}, origin: batchID(77).String() + "/1"},
		message{number: 9002, events: []string{"too late"}},
	)
	sink := newRecorder()
	result := mustReplay(t, s.config(sink, func(c *Config) { c.Since, c.Until = second(t, 1), second(t, 3) }))
	if got := sink.lane(0); !slices.Equal(got, []string{"1.0", "1.1", "2.0", "late", "of another", "its neighbour"}) || result.Events != 6 {
		t.Errorf("%v, %+v", got, result)
	}
}

func TestRecentSetForgetsTheOldest(t *testing.T) {
	s := newRecentSet[pipeline.BatchID](3)
	for n := int64(1); n <= 5; n++ {
		if !s.add(batchID(n)) || s.add(batchID(n)) {
			t.Errorf("batch %d", n)
		}
	}
	if s.has(batchID(2)) || !s.has(batchID(3)) || !s.has(batchID(5)) || len(s.known) != 3 {
		t.Errorf("%v", s.known)
	}
}

func TestReplayNamesWhatIsMissing(t *testing.T) {
	s := mustSite(t)
	s.mustFill(t, 10)
	if err := s.mustStream(t).DeleteMsg(t.Context(), 5); err != nil {
		t.Fatal(err)
	}
	if _, err := s.js.Publish(t.Context(), "events.1", []byte("x")); err != nil {
		t.Fatal(err)
	}
	sink := newRecorder()
	r, err := New(s.config(sink, func(c *Config) { c.Resumable = true }))
	if err != nil {
		t.Fatal(err)
	}
	result, err := r.Run(t.Context())
	if err != nil || result.Events != 18 || len(result.Missing) != 2 || !strings.Contains(result.Missing[0], "sequences 5 to 5") || !strings.Contains(result.Missing[1], "message 11") {
		t.Errorf("%+v, %v", result, err)
	}
	// It is done, and says the same again.
	if r, err = New(s.config(sink, func(c *Config) { c.Resumable = true })); err != nil {
		t.Fatal(err)
	}
	if result, err = r.Run(t.Context()); err != nil || !result.Before || result.Events != 18 || len(result.Missing) != 2 || sink.total() != 18 {
		t.Errorf("%+v, %v; the sink has %d", result, err, sink.total())
	}
}

// What was refused is reported, what is to be tried again is, in its place.
func TestReplayToASinkWithMoods(t *testing.T) {
	s := mustSite(t)
	s.mustFill(t, 20)
	sink := newRecorder()
	sink.limits.Linger = patience // each lane is one request
	var mu sync.Mutex
	tries := map[int]int{}
	sink.answer = func(_ context.Context, lane int, ids []string) ([]pipeline.Result, error) {
		mu.Lock()
		defer mu.Unlock()
		tries[lane]++
		results := delivered(len(ids))
		switch tries[lane] {
		case 1:
			return nil, errors.New("away")
		case 2:
			return make([]pipeline.Result, 1), nil // it breaks its contract
		case 3:
			for i := 1; i < len(results); i++ {
				results[i] = pipeline.Result{Verdict: pipeline.Retry, Reason: "later"}
			}
		}
		for i, id := range ids {
			if results[i].Verdict == pipeline.Delivered && strings.HasPrefix(id, "even:7.") {
				results[i] = pipeline.Result{Verdict: pipeline.Refused, Code: "BAD", Reason: "no"}
			}
		}
		return results, nil
	}
	r, err := New(s.config(sink))
	if err != nil {
		t.Fatal(err)
	}
	result, err := r.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := slices.DeleteFunc(ids(1, 20, 1), func(id string) bool { return id == "even:7.1" })
	if !slices.Equal(sink.lane(0), ids(1, 20, 0)) || !slices.Equal(sink.lane(1), want) {
		t.Errorf("%v, %v", sink.lane(0), sink.lane(1))
	}
	if result.Events != 39 || result.Refused != 1 || result.Refusals["BAD"] != 1 || result.Repeated != 6 || result.Requests != 8 {
		t.Errorf("%+v", result)
	}
	if e := result.Examples; len(e) != 1 || e[0] != (Refusal{Source: "/source", Type: "even", ID: "even:7.1", Code: "BAD", Reason: "no"}) {
		t.Errorf("%+v", e)
	}
}

func TestReplayGivesUp(t *testing.T) {
	s := mustSite(t)
	s.mustFill(t, 4)
	sink := newRecorder()
	sink.answer = func(context.Context, int, []string) ([]pipeline.Result, error) {
		return nil, errors.New("away for good")
	}
	r, err := New(s.config(sink, func(c *Config) { c.RetryFor = 300 * time.Millisecond }))
	if err != nil {
		t.Fatal(err)
	}
	result, err := r.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "took nothing for 300ms: away for good") || result.Events != 0 {
		t.Errorf("%+v, %v", result, err)
	}
}

// A replay that is stopped anywhere goes on where it was: everything comes, in order, and only what
// was under way comes again.
func TestReplayIsStoppedAndGoesOn(t *testing.T) {
	s := mustSite(t)
	const batches = 200
	s.mustFill(t, batches)
	sink := newRecorder()
	sink.limits.Events = 4
	change := func(c *Config) { c.Resumable, c.SaveEvery, c.InFlight = true, 5*time.Millisecond, 2 }
	stops := 0
	for runs := 0; ; runs++ {
		if runs > 100 {
			t.Fatal("it does not end")
		}
		ctx, cancel := context.WithCancel(t.Context())
		calls := 0
		sink.mu.Lock()
		sink.answer = func(_ context.Context, lane int, ids []string) ([]pipeline.Result, error) {
			if lane == 1 {
				time.Sleep(10 * time.Millisecond) // the other one is ahead of it
			}
			sink.mu.Lock()
			calls++
			lost := calls > 12
			sink.mu.Unlock()
			time.Sleep(2 * time.Millisecond)
			if lost {
				cancel() // it took them, and the answer is lost
				sink.mu.Lock()
				defer sink.mu.Unlock()
				sink.took[laneOf(ids[0])] = append(sink.took[laneOf(ids[0])], ids...)
				return nil, errors.New("lost")
			}
			return delivered(len(ids)), nil
		}
		sink.mu.Unlock()
		r, err := New(s.config(sink, change))
		if err != nil {
			t.Fatal(err)
		}
		result, err := r.Run(ctx)
		cancel()
		if err == nil {
			if result.Events != 2*batches || result.Resumed == 0 || result.Before {
				t.Errorf("%+v", result)
			}
			break
		}
		if !errors.Is(err, ErrStopped) {
			t.Fatal(err)
		}
		stops++
	}
	if stops < 3 {
		t.Fatalf("it was stopped %d times", stops)
	}
	for lane := range 2 {
		var first []string
		seen := map[string]bool{}
		again := 0
		for _, id := range sink.lane(lane) {
			if seen[id] {
				again++
				continue
			}
			seen[id] = true
			first = append(first, id)
		}
		if !slices.Equal(first, ids(1, batches, lane)) {
			t.Errorf("lane %d: %v", lane, first)
		}
		// Each stop loses the answers of two requests at most, and the state is as old as those.
		if most := stops * 2 * 2 * sink.limits.Events; again > most {
			t.Errorf("lane %d: %d came again, want at most %d", lane, again, most)
		}
	}
}

func laneOf(id string) int {
	digits := strings.TrimPrefix(strings.Split(id, ".")[0], "even:")
	return int(digits[len(digits)-1]-'0') % 2
}

func TestReplayIsTakenOverOrChanged(t *testing.T) {
	s := mustSite(t)
	s.mustFill(t, 30)
	sink := newRecorder()
	sink.limits.Events = 2
	entered, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	sink.answer = func(ctx context.Context, _ int, ids []string) ([]pipeline.Result, error) {
		once.Do(func() { close(entered) })
		select {
		case <-release:
			return delivered(len(ids)), nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	change := func(c *Config) { c.Resumable, c.SaveEvery = true, 10*time.Millisecond }
	first, err := New(s.config(sink, change))
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() { _, err := first.Run(t.Context()); failed <- err }()
	<-entered
	other, err := New(s.config(newRecorder(), change))
	if err != nil {
		t.Fatal(err)
	}
	if result, err := other.Run(t.Context()); err != nil || result.Events != 60 {
		t.Fatalf("the second: %+v, %v", result, err)
	}
	if err := <-failed; !errors.Is(err, pipeline.ErrReplayTaken) {
		t.Errorf("the first: %v", err)
	}
	for want, change := range map[string]func(*Config){
		"no --type, and not even": func(c *Config) { c.Type = "even" },
		"the target somewhere":    func(c *Config) { c.Target = "elsewhere" },
		"no --since, and not 2h":  func(c *Config) { c.Since = mustPoint(t, "2h") },
		"no --lane, and not 1":    func(c *Config) { c.Lanes = []int{1} },
	} {
		r, err := New(s.config(sink, func(c *Config) { c.Resumable = true }, change))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Run(t.Context()); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "another name") {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// Positions of a stream that was made anew mean nothing.
func TestReplayOfAStreamMadeAnew(t *testing.T) {
	s := mustSite(t)
	s.mustFill(t, 10)
	sink := newRecorder()
	ctx, cancel := context.WithCancel(t.Context())
	sink.answer = func(ctx context.Context, _ int, _ []string) ([]pipeline.Result, error) {
		cancel()
		return nil, ctx.Err()
	}
	change := func(c *Config) { c.Resumable = true }
	r, err := New(s.config(sink, change))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Run(ctx); !errors.Is(err, ErrStopped) {
		t.Fatal(err)
	}
	if err := s.js.DeleteStream(t.Context(), pipeline.EventsStream); err != nil {
		t.Fatal(err)
	}
	s.mustCreate(t)
	if r, err = New(s.config(sink, change)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "made anew") || !strings.Contains(err.Error(), "--from=archive") {
		t.Error(err)
	}
}

func TestReplayKeepsToARate(t *testing.T) {
	s := mustSite(t)
	s.mustFill(t, 30) // 60 events
	sink := newRecorder()
	began := time.Now()
	result := mustReplay(t, s.config(sink, func(c *Config) { c.Rate = 20 }))
	if took := time.Since(began); took < 2*time.Second || result.Events != 60 {
		t.Errorf("%d events in %v, at 20 a second", result.Events, took)
	}
}

func TestSourceIsChosen(t *testing.T) {
	s := mustSite(t)
	s.mustFill(t, 3)
	history, err := s.queue.History(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	auto := s.config(nil, func(c *Config) { c.From = FromAuto })
	margin := int64(queueMargin / time.Second)
	at := func(n int64) time.Time { return epoch.Add(time.Duration(n) * time.Second) }
	if from, err := auto.choose(t.Context(), at(1+margin), history); err != nil || from != FromStream {
		t.Errorf("inside the stream: %s, %v", from, err)
	}
	_, err = auto.choose(t.Context(), at(margin), history)
	if err == nil || !strings.Contains(err.Error(), "reaches back to 2026-03-01T12:00:01Z only") || !strings.Contains(err.Error(), "--s3-bucket") {
		t.Errorf("beyond the stream: %v", err)
	}
	if err := s.mustStream(t).Purge(t.Context(), jetstream.WithPurgeSequence(3)); err != nil {
		t.Fatal(err)
	}
	if history, err = s.queue.History(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := auto.choose(t.Context(), at(2+margin), history); err == nil {
		t.Error("what was trimmed is in the stream")
	}
	if from, err := auto.choose(t.Context(), at(3+margin), history); err != nil || from != FromStream {
		t.Errorf("behind what was trimmed: %s, %v", from, err)
	}
	var said []string
	c := s.config(nil, func(c *Config) {
		c.Since, c.Warn = second(t, 1), func(text string) { said = append(said, text) }
	})
	if span, err := c.resolve(t.Context(), time.Now()); err != nil || span.From != FromStream || len(said) != 1 || !strings.Contains(said[0], "12:00:03Z") {
		t.Errorf("%+v, %v, %q", span, err, said)
	}
}
