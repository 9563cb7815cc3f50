package pipeline

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// frontEmitter is the way by which an emitter's events come, in metrics and spans.
const frontEmitter = "emitter"

// Emit makes an event durable: it returns nil once the event is committed, and then the event
// will reach every sink. Many goroutines may call it at once; their events share transactions.
//
// The error is an *InvalidEventError, ErrOverloaded (also ErrBacklogFull: retry later), ErrUnavailable
// (also ErrNotRunning and ErrStopping: nothing was stored) or ErrOutcomeUnknown: the event may be
// stored, and emitting it again under the same ID stores it once within the pipeline's dedupe
// window. When ctx ends first, Emit returns ErrOutcomeUnknown and ctx's error; when it had ended
// before, ctx's error alone, and nothing was stored.
//
// A span in ctx becomes the event's starting trace, unless the event has a traceparent.
func (e *Emitter) Emit(ctx context.Context, event CloudEvent) error {
	started := time.Now()
	in, err := e.taker(ctx)
	if err != nil {
		return e.metrics.refusedOne(&event, err)
	}
	s := takeSubmission()
	if s.one[0], err = encodeEmitted(ctx, &event, e.cfg.MaxEventBytes, e.cfg.DedupeAttribute); err != nil {
		s.giveBack()
		return e.metrics.refusedOne(&event, err)
	}
	s.unit.events = s.one[:]
	return e.submit(ctx, in, s, started)
}

// EmitBatch emits events in one transaction: all are committed, in their order, or none is. It is
// as Emit otherwise. More events than the ingester's QueueEvents, or QueueBytes, are taken only
// while nothing else waits. No events are committed at once.
func (e *Emitter) EmitBatch(ctx context.Context, events ...CloudEvent) error {
	started := time.Now()
	in, err := e.taker(ctx)
	if err != nil || len(events) == 0 {
		return e.metrics.refusedAll(events, err)
	}
	s := takeSubmission()
	if s.unit.events, err = encodeAllEmitted(ctx, events, e.cfg.MaxEventBytes, e.cfg.DedupeAttribute); err != nil {
		s.giveBack()
		return e.metrics.refusedAll(events, err)
	}
	return e.submit(ctx, in, s, started)
}

// EmitAsync emits an event without waiting: it never blocks. done is called exactly once, whatever
// happens, with what Emit would return. It is called before EmitAsync returns where the event is
// not taken: it is invalid, ctx has ended, the emitter does not run, or the done functions of
// AsyncEvents events have not returned. Otherwise it is called later, by one goroutine for all, in the
// order of the commits: one that is slow holds up those behind it, and no transaction.
//
// Of ctx only its span and whether it has ended matter; an event that is taken goes on without
// it. What event refers to may be changed when EmitAsync has returned.
func (e *Emitter) EmitAsync(ctx context.Context, event CloudEvent, done func(error)) {
	if done == nil {
		panic("EmitAsync: done is nil; give a function, since nothing else tells what became of the event")
	}
	a := &asyncEvent{emitter: e, done: done, started: time.Now()}
	in, err := e.taker(ctx)
	if err == nil {
		a.one[0], err = encodeEmitted(ctx, &event, e.cfg.MaxEventBytes, e.cfg.DedupeAttribute)
	}
	if err == nil {
		err = e.calls.reserve()
	}
	if err != nil {
		done(e.metrics.refusedOne(&event, err))
		return
	}
	a.unit = unit{events: a.one[:], asked: a}
	a.accepting = e.cfg.Ingester.Tracing.Accept(frontEmitter, a.started, a.unit.events)
	in.submit(&a.unit)
}

// taker is the ingester that takes events, or the error says why none are taken just now.
func (e *Emitter) taker(ctx context.Context) (*Ingester, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("nothing was emitted: %w", err)
	}
	for {
		if in := e.ingester.Load(); in != nil {
			return in, nil
		}
		if err := e.notTaking(); err != nil {
			return nil, err
		} // else events are taken since a moment ago
	}
}

// asyncEvent is one event of EmitAsync.
type asyncEvent struct {
	emitter   *Emitter
	done      func(error)
	unit      unit
	one       [1]Event
	started   time.Time
	accepting *Accepting
	err       error // the answer
}

// answer implements answerer.
func (a *asyncEvent) answer(err error) {
	a.err = err
	a.one[0].Encoded = nil // its memory is not needed while others' done functions run
	a.emitter.calls.add(a)
}

// call tells of the answer.
func (a *asyncEvent) call() {
	a.emitter.answered(a.started, a.unit.events, a.accepting, a.err)
	a.one[0], a.unit.events = Event{}, nil
	a.done(a.err)
}

// submission is a unit whose caller waits for the answer.
type submission struct {
	unit unit
	one  [1]Event
	done answerChannel
}

var submissions = sync.Pool{New: func() any {
	s := &submission{done: make(answerChannel, 1)}
	s.unit.asked = s.done
	return s
}}

func takeSubmission() *submission { return submissions.Get().(*submission) }

// giveBack must not be called while the answer is still to come.
func (s *submission) giveBack() {
	s.unit.events, s.one[0] = nil, Event{}
	submissions.Put(s)
}

// submit waits for the answer to a submission.
func (e *Emitter) submit(ctx context.Context, in *Ingester, s *submission, started time.Time) error {
	accepting := e.cfg.Ingester.Tracing.Accept(frontEmitter, started, s.unit.events)
	in.submit(&s.unit)
	select {
	case err := <-s.done:
		e.answered(started, s.unit.events, accepting, err)
		s.giveBack()
		return err
	case <-ctx.Done():
		// The unit is in the ingester's hands, and so is all that it refers to.
		err := fmt.Errorf("%w: the caller stopped waiting: %w", ErrOutcomeUnknown, ctx.Err())
		e.metrics.answered(started, s.unit.events, err)
		if accepting != nil {
			left := time.Now()
			go func() { // not for long: each unit has its answer before the ingester's Run returns
				<-s.done
				accepting.answeredAt(left, err)
				s.giveBack()
			}()
		}
		return err
	}
}

// answered notes the answer to events that were submitted.
func (e *Emitter) answered(started time.Time, events []Event, accepting *Accepting, err error) {
	e.metrics.answered(started, events, err)
	accepting.Answered(err)
}
