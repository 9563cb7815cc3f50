package pipeline

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

const (
	// backlogEvery is the pause between reads of what waits in Postgres.
	backlogEvery = time.Second
	// backlogOld is when an ingest counts by itself: several times the pause between a
	// janitor's surveys.
	backlogOld = 10 * time.Second
	// backlogStep is how fine the time is by which accepted events are told apart from those
	// that a survey has counted, and backlogSteps how many such are kept.
	backlogStep  = 100 * time.Millisecond
	backlogSteps = 128
	// backlogJump is how much earlier than before it is only where Postgres's clock was set back.
	backlogJump = backlogOld
)

// backlogLimit refuses events while too many wait in Postgres. It knows what a survey of a
// second or two ago found, and what this process has accepted since.
type backlogLimit struct {
	maxEvents, maxBytes int64 // 0: none

	mu     sync.Mutex // guards what follows
	survey Waiting
	since  []acceptedStep // after the survey, oldest first
	events int64          // survey and since together
	bytes  int64
	full   bool
}

// acceptedStep is what was accepted in a moment, by Postgres's clock.
type acceptedStep struct {
	at            time.Time
	events, bytes int64
}

// accepted notes a commit.
func (l *backlogLimit) accepted(at time.Time, events, bytes int64) {
	if events == 0 {
		return // all of it was known, and it has no time
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events += events
	l.bytes += bytes
	if n := len(l.since); n > 0 && at.Sub(l.since[n-1].at) < -backlogJump {
		for i := range l.since {
			l.since[i].at = at // as late as that at most, by the clock as it is now
		}
	}
	if n := len(l.since); n > 0 && at.Sub(l.since[n-1].at) < backlogStep {
		last := &l.since[n-1]
		last.events += events
		last.bytes += bytes
		return
	}
	if len(l.since) == backlogSteps { // rather counted too long than not at all
		l.since[1].events += l.since[0].events
		l.since[1].bytes += l.since[0].bytes
		l.since = append(l.since[:0], l.since[1:]...)
	}
	l.since = append(l.since, acceptedStep{at, events, bytes})
}

// surveyed takes over what a survey found.
func (l *backlogLimit) surveyed(w Waiting) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch later := w.SurveyedAt.Sub(l.survey.SurveyedAt); {
	case later < -backlogJump:
		// What was accepted by the clock as it was before is in a survey that began after.
		l.since = slices.DeleteFunc(l.since, func(s acceptedStep) bool { return !s.at.Before(l.survey.SurveyedAt) })
	case later < 0:
		return
	}
	l.survey = w
	n := 0
	// A step goes on for a while after its time, and is counted as long as part of it may
	// be newer than the survey.
	for n < len(l.since) && l.since[n].at.Add(backlogStep).Before(w.SurveyedAt) {
		n++
	}
	l.since = append(l.since[:0], l.since[n:]...)
	l.events, l.bytes = w.Events, w.Bytes
	for _, s := range l.since {
		l.events += s.events
		l.bytes += s.bytes
	}
}

// check returns ErrBacklogFull while what waits, with events and bytes that are about to be
// committed, is at a limit; having been there, until it is 5 % below.
func (l *backlogLimit) check(events, bytes int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, b := l.events+events, l.bytes+bytes
	l.full = reaches(e, l.maxEvents, l.full) || reaches(b, l.maxBytes, l.full)
	if !l.full {
		return nil
	}
	return fmt.Errorf("%w: %d events of %d bytes wait for the sinks; the limits are %d and %d", ErrBacklogFull, e, b, l.maxEvents, l.maxBytes)
}

func reaches(n, limit int64, full bool) bool {
	if full {
		limit -= limit / 20
	}
	return limit > 0 && n >= limit
}

// fill returns how much waits as far as is known.
func (l *backlogLimit) fill() (events, bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.events, l.bytes
}

// watch reads what waits until ctx ends. While that fails, what is known still counts, and
// what is accepted on top of it.
func (l *backlogLimit) watch(ctx context.Context, store *Store, failed func(error)) {
	for ctx.Err() == nil {
		w, err := store.ReadWaiting(ctx, backlogOld)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			l.surveyed(w)
		}
		failed(err)
		pause(ctx, backlogEvery)
	}
}

// BacklogFull says why events are refused because of what waits in Postgres, or is nil.
func (in *Ingester) BacklogFull() error { return in.backlog.check(0, 0) }

// noteBacklog logs when what waits cannot be read, and when it can again.
func (in *Ingester) noteBacklog(err error) {
	in.mu.Lock()
	before := in.backlogUnread
	in.backlogUnread = err != nil
	in.mu.Unlock()
	switch {
	case err != nil && !before:
		in.log.Warn("what waits in Postgres cannot be read; what is accepted meanwhile counts towards the limit", "error", err)
	case err == nil && before:
		in.log.Info("what waits in Postgres can be read again")
	}
}
