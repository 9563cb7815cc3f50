package pipeline

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

// mustLimited runs an ingester of its own with a backlog limit.
func (r *rig) mustLimited(t testing.TB, change func(*IngesterConfig)) *Ingester {
	t.Helper()
	cfg := DefaultIngesterConfig()
	change(&cfg)
	in, err := NewIngester(cfg, r.store, r.queue, testLog(t), testMeter)
	if err != nil {
		t.Fatal(err)
	}
	mustRun(t, in.Run)
	// The first survey; the next is far off. What is accepted while one begins counts twice.
	eventually(t, patience, "what waits is read", func() bool {
		in.backlog.mu.Lock()
		defer in.backlog.mu.Unlock()
		return in.backlog.survey.SurveyedAt.Unix() > 0
	})
	return in
}

// mustSettleAllBut deletes what waits as if every sink had it, but for the newest batches.
func (r *rig) mustSettleAllBut(t testing.TB, keep int) {
	t.Helper()
	_, err := r.store.pool.Exec(t.Context(), `
		WITH kept AS (SELECT batch FROM waybill.batches ORDER BY batch DESC LIMIT $1),
		gone AS (DELETE FROM waybill.batches WHERE batch NOT IN (SELECT batch FROM kept) RETURNING batch)
		DELETE FROM waybill.events WHERE position >> 12 IN (SELECT batch FROM gone)`, keep)
	if err != nil {
		t.Fatal(err)
	}
}

func (r *rig) mustSurvey(t testing.TB) Waiting {
	t.Helper()
	survey, err := r.store.Survey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w := survey.Waiting()
	if err := r.store.SaveWaiting(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	return w
}

// Invariant 8: what waits in Postgres is bounded, and a burst between two surveys is counted.
func TestBacklogLimit(t *testing.T) {
	r := mustRig(t)
	in := r.mustLimited(t, func(c *IngesterConfig) { c.BacklogEvents = 100 })
	accepted := 0
	var err error
	for accepted < 1000 {
		if err = in.Accept(t.Context(), []Event{laneEvent(t, "x")}); err != nil {
			break
		}
		accepted++
	}
	if !errors.Is(err, ErrBacklogFull) || !errors.Is(err, ErrOverloaded) || accepted != 100 {
		t.Fatalf("%v after %d events; want ErrBacklogFull after 100", err, accepted)
	}
	if in.BacklogFull() == nil {
		t.Error("the ingester does not say that the backlog is full")
	}
	r.mustSettleAllBut(t, 97)
	eventually(t, patience, "a survey is read", func() bool {
		r.mustSurvey(t)
		events, _ := in.backlog.fill()
		return events == 97
	})
	if err := in.Accept(t.Context(), []Event{laneEvent(t, "x")}); !errors.Is(err, ErrBacklogFull) {
		t.Errorf("%v with 97 of 100 waiting; want ErrBacklogFull until there are less than 95", err)
	}
	r.mustSettleAllBut(t, 94)
	eventually(t, patience, "events are accepted again", func() bool {
		r.mustSurvey(t)
		return in.Accept(t.Context(), []Event{laneEvent(t, "x")}) == nil
	})
}

func TestBacklogLimitOfBytes(t *testing.T) {
	r := mustRig(t)
	in := r.mustLimited(t, func(c *IngesterConfig) { c.BacklogBytes = 10_000 })
	accepted, size := 0, 0
	for {
		e := laneEvent(t, "x")
		err := in.Accept(t.Context(), []Event{e})
		if errors.Is(err, ErrBacklogFull) {
			break
		}
		if err != nil || size > 20_000 {
			t.Fatalf("%v after %d bytes", err, size)
		}
		accepted++
		size += len(e.Encoded)
	}
	if size < 5_000 {
		t.Errorf("refused after %d bytes in %d events", size, accepted)
	}
}

// Each event counts once, however many sinks it waits for, and with a janitor the limit
// knows.
func TestSurveyCountsEachEventOnce(t *testing.T) {
	r := mustRig(t)
	events := mustEvents(t, 500, 7)
	r.mustAccept(t, events...)
	w := r.mustSurvey(t)
	if w.Events != 500 || w.Bytes < 500*50 || w.SurveyedAt.IsZero() {
		t.Fatalf("%d events wait in %d bytes, at %v", w.Events, w.Bytes, w.SurveyedAt)
	}
	read, err := r.store.ReadWaiting(t.Context(), time.Hour)
	if err != nil || read.Events != 500 || read.Bytes != w.Bytes || !read.SurveyedAt.Equal(w.SurveyedAt) {
		t.Fatalf("read %+v, %v; saved %+v", read, err, w)
	}
	older := w
	older.Events, older.SurveyedAt = 1, w.SurveyedAt.Add(-time.Second)
	if err := r.store.SaveWaiting(t.Context(), older); err != nil {
		t.Fatal(err)
	}
	if read, err = r.store.ReadWaiting(t.Context(), time.Hour); err != nil || read.Events != 500 {
		t.Fatalf("an older survey replaced a newer one: %+v, %v", read, err)
	}
}

// Without a janitor an ingest counts by itself what all of them have accepted.
func TestBacklogWithoutJanitor(t *testing.T) {
	r := mustRig(t)
	r.mustAccept(t, mustEvents(t, 300, 7)...)
	w, err := r.store.ReadWaiting(t.Context(), 0)
	if err != nil || w.Events != 300 {
		t.Fatalf("%+v, %v; want 300 events", w, err)
	}
	other := r.mustLimited(t, func(c *IngesterConfig) { c.BacklogEvents = 200 })
	eventually(t, patience, "another ingest refuses events", func() bool { return other.BacklogFull() != nil })
}

// What was accepted after a survey began counts on top of it, and what before, no more.
func TestBacklogSinceTheSurvey(t *testing.T) {
	l := &backlogLimit{maxEvents: 100}
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range 10 {
		l.accepted(start.Add(time.Duration(i)*time.Second), 10, 1000)
	}
	if l.check(0, 0) == nil {
		t.Error("100 of 100 events do not fill it")
	}
	l.surveyed(Waiting{Events: 5, Bytes: 500, SurveyedAt: start.Add(7500 * time.Millisecond)})
	if events, bytes := l.fill(); events != 25 || bytes != 2500 {
		t.Errorf("%d events and %d bytes; want the survey's 5 and 20 since", events, bytes)
	}
	if err := l.check(0, 0); err != nil {
		t.Error(err)
	}
	if err := l.check(75, 0); err == nil {
		t.Error("what is about to be committed does not count")
	}
	l.surveyed(Waiting{Events: 90, SurveyedAt: start}) // an older one
	if events, _ := l.fill(); events != 25 {
		t.Errorf("an older survey was taken: %d events", events)
	}
	for i := range 10 * backlogSteps {
		l.accepted(start.Add(time.Minute+time.Duration(i)*time.Second), 1, 1)
	}
	if events, _ := l.fill(); events != 25+10*backlogSteps || len(l.since) > backlogSteps {
		t.Errorf("%d events in %d steps", events, len(l.since))
	}
}

// Invariant 8, with a clock of Postgres that was set back: what was counted before holds until the next survey, and not until
// the clock is there again.
func TestBacklogAfterAClockWasSetBack(t *testing.T) {
	for _, janitor := range []bool{true, false} {
		t.Run(fmt.Sprint("janitor ", janitor), func(t *testing.T) {
			r := mustRig(t)
			in := r.mustLimited(t, func(c *IngesterConfig) { c.BacklogEvents = 100 })
			mustExec(t, r.store.pool, `UPDATE waybill.backlog SET events = 100, surveyed_at = now() + interval '1 hour'`)
			in.backlog.surveyed(Waiting{Events: 100, SurveyedAt: time.Now().Add(time.Hour)}) // as it has read it
			eventually(t, patience, "events are accepted again", func() bool {
				if janitor {
					r.mustSurvey(t)
				}
				return in.Accept(t.Context(), []Event{laneEvent(t, "x")}) == nil
			})
		})
	}
	l := &backlogLimit{maxEvents: 100}
	before := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	now := before.Add(-time.Hour)
	l.surveyed(Waiting{Events: 30, SurveyedAt: before})
	l.accepted(before.Add(time.Second), 50, 1)
	l.accepted(now, 10, 1)
	l.accepted(time.Time{}, 0, 0)
	l.accepted(now.Add(time.Second), 5, 1)
	if events, _ := l.fill(); events != 95 {
		t.Errorf("%d events wait, want 95", events)
	}
	l.surveyed(Waiting{Events: 90, SurveyedAt: now.Add(500 * time.Millisecond)})
	if events, _ := l.fill(); events != 95 {
		t.Errorf("%d events wait, want the survey's 90 and 5 since", events)
	}
	l = &backlogLimit{maxEvents: 100}
	l.surveyed(Waiting{Events: 30, SurveyedAt: before})
	l.accepted(before.Add(time.Second), 70, 1)
	l.surveyed(Waiting{Events: 5, SurveyedAt: now})
	if err := l.check(0, 0); err != nil {
		t.Error(err)
	}
}
