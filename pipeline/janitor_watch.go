package pipeline

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// tablesEvery is the pause between looks at the health of the tables.
const tablesEvery = 15 * time.Second

// outboxEvery is the pause between looks at the outbox.
const outboxEvery = 5 * time.Second

// watched is what a janitor has seen of the others' state, for its metrics and for people.
type watched struct {
	survey  Survey
	sinks   []string // of the table of sinks
	streams map[string]streamFill
	tables  []TableHealth
	outbox  OutboxSurvey
}

// streamFill is how full a stream is.
type streamFill struct{ bytes, limit, messages int64 }

// lookAtTables reads the health of the tables. One that is locked, to be truncated or rebuilt, is
// no trouble: it is looked at again.
func (j *Janitor) lookAtTables(ctx context.Context) error {
	tables, err := bounded(ctx, j.store.Tables)
	if isLockTimeout(err) {
		return nil
	}
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.watched.tables = tables
	return nil
}

// lookAtOutbox surveys the outbox.
func (j *Janitor) lookAtOutbox(ctx context.Context) error {
	before := j.outbox()
	survey, err := bounded(ctx, func(ctx context.Context) (OutboxSurvey, error) { return j.store.SurveyOutbox(ctx, before) })
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.watched.outbox = survey
	return nil
}

func (j *Janitor) outbox() OutboxSurvey {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.watched.outbox
}

// OutboxProblem says what is wrong with the outbox, or is nil.
func (j *Janitor) OutboxProblem() error { return j.outbox().Trouble() }

// sawStream takes note of a stream.
func (j *Janitor) sawStream(info *jetstream.StreamInfo) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.watched.streams == nil {
		j.watched.streams = map[string]streamFill{}
	}
	j.watched.streams[info.Config.Name] = streamFill{int64(info.State.Bytes), info.Config.MaxBytes, int64(info.State.Msgs)}
}

// sawSinks takes note of the sinks that there are.
func (j *Janitor) sawSinks(sinks []string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.watched.sinks = sinks
}

// sawPending takes note of a survey.
func (j *Janitor) sawPending(survey Survey) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.watched.survey = survey
}

// Pending returns the newest survey of what waits. While little waits it is at most
// RetransmitEvery old.
func (j *Janitor) Pending() Survey {
	survey, _ := j.seen()
	return survey
}

// seen returns the newest survey, and the sinks.
func (j *Janitor) seen() (Survey, []string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.watched.survey, j.watched.sinks
}

func (j *Janitor) streamFills() map[string]streamFill {
	j.mu.Lock()
	defer j.mu.Unlock()
	return maps.Clone(j.watched.streams)
}

func (j *Janitor) tableHealth() []TableHealth {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.watched.tables
}

// lanes is the number of lanes; 0 without a store.
func (j *Janitor) lanes() int {
	if j.store == nil {
		return 0
	}
	return j.store.Lanes()
}

// Buffers says how full the streams are.
func (j *Janitor) Buffers() []Buffer {
	fills := j.streamFills()
	var all []Buffer
	for _, name := range slices.Sorted(maps.Keys(fills)) {
		all = append(all, streamBuffer(name, fills[name].bytes, fills[name].limit))
	}
	return all
}

// NearTTL names the sinks for which events wait that have less than a fifth of their time to
// live left, or is nil.
func (j *Janitor) NearTTL() error { return j.Pending().NearTTL() }

// NearTTL names the sinks for which events wait that have less than a fifth of their time to
// live left, or is nil.
func (s Survey) NearTTL() error {
	pending := s.BySink()
	var errs []error
	for _, sink := range slices.Sorted(maps.Keys(pending)) {
		if b := pending[sink]; b.NearTTL > 0 {
			errs = append(errs, fmt.Errorf("%d events for %s have less than a fifth of their time to live left, the first of them %v; then they become dead letters",
				b.NearTTL, sink, max(0, b.OldestExpires.Sub(s.Now)).Round(time.Second)))
		}
	}
	return errors.Join(errs...)
}
