package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"

	"github.com/waybillhq/waybill/internal/producer"
)

// emitter sends events and counts what became of them.
type emitter struct {
	sender   producer.Sender
	patience time.Duration
	errors   io.Writer
	place    emitPlace

	accepted, failed int
	nobody           int    // of those that failed: that found nobody to take them
	unreached        string // why the newest of them did not

	// What was said of events that are to be sent again, since when that is so, and when it is said again.
	told  string
	since time.Time
	again time.Time
}

// emitPlace is where events go, for people.
type emitPlace struct {
	what   string // such as an ingest at http://127.0.0.1:8080
	act    string // what fails where nobody is there, such as connect to …; empty: the reason says it
	remedy string // and what to do then
}

// nobody says that nobody is there, and what to do.
func (p emitPlace) nobody(reason string) string { return p.act + reason + "; " + p.remedy }

// tellAgain is the pause between two words on the same trouble.
const tellAgain = 10 * time.Second

// send sends a batch and says what is wrong with those that are not accepted.
func (e *emitter) send(ctx context.Context, batch []emission) {
	events := make([]*pb.CloudEvent, len(batch))
	for i := range batch {
		events[i] = batch[i].event
	}
	outcomes := producer.SendUntil(ctx, e.sender, events, e.patience, func(left int, err error) {
		if ctx.Err() == nil {
			e.delayed(left, err)
		}
	})
	if e.told != "" && outcomes[len(outcomes)-1].Err == nil {
		_, _ = fmt.Fprintf(e.errors, "it goes on, after %v\n", time.Since(e.since).Round(100*time.Millisecond))
		e.told = ""
	}
	for i := 0; i < len(outcomes); i++ {
		err := outcomes[i].Err
		if err == nil {
			e.accepted++
			continue
		}
		same := i + 1 // of those with an error that is of the whole request one line is enough
		for why := common(ctx, err); why != "" && same < len(outcomes) && common(ctx, outcomes[same].Err) == why; {
			same++
		}
		name := batch[i].name
		if same > i+1 {
			name += " to " + batch[same-1].name
		}
		if why := common(ctx, err); why == stopped {
			err = errors.New(why)
		}
		e.fail(name, err)
		e.failed += same - i - 1
		if unreached(err) != "" {
			e.nobody += same - i - 1
		}
		i = same - 1
	}
}

// common is what is wrong with an event that is wrong with all of its request; empty: it may be its own.
func common(ctx context.Context, err error) string {
	var again *producer.TryAgainError
	if ctx.Err() != nil && errors.As(err, &again) && again.Unknown {
		return stopped
	}
	return unreached(err)
}

// stopped is what became of an event whose answer was not waited for.
const stopped = "interrupted before the answer, and so perhaps accepted"

// unreached is why nobody was there to take an event; empty: it is not that.
func unreached(err error) string {
	var nobody *producer.UnreachableError
	if errors.As(err, &nobody) {
		return nobody.Reason
	}
	return ""
}

// delayed says that events are to be sent again, and not each time when nothing has changed since.
func (e *emitter) delayed(left int, err error) {
	why := err.Error()
	reason := unreached(err)
	if reason != "" {
		why = reason
	}
	now := time.Now()
	if why == e.told && now.Before(e.again) {
		return
	}
	first := why != e.told
	if first {
		e.told, e.since = why, now
	}
	e.again = now.Add(tellAgain)
	switch {
	case first && reason != "":
		why = fmt.Sprintf("%s; each is tried for %v (--retry-for)", e.place.nobody(reason), e.patience)
	case !first:
		why = fmt.Sprintf("%s, for %v now", why, now.Sub(e.since).Round(time.Second))
	}
	_, _ = fmt.Fprintf(e.errors, "%s to be sent again: %s\n", plural(left, "event"), oneLine(why))
}

func (e *emitter) fail(name string, err error) {
	e.failed++
	why := err.Error()
	if reason := unreached(err); reason != "" {
		why, e.unreached = reason, reason
		e.nobody++
	}
	_, _ = fmt.Fprintf(e.errors, "%s: %s\n", name, oneLine(why))
}

// failure is the error of a command that has given events up.
func (e *emitter) failure() error {
	if e.nobody < e.failed {
		return fmt.Errorf("%s not accepted by %s; the lines above say why", plural(e.failed, "event"), e.place.what)
	}
	return serverError{fmt.Errorf("%s not accepted: %s", plural(e.failed, "event"), e.place.nobody(e.unreached)), true}
}
