package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/waybillhq/waybill/internal/cli"
	"github.com/waybillhq/waybill/internal/process"
	"github.com/waybillhq/waybill/pipeline"
)

// deadlettersCommand is what operators do with events that a sink refused, or did not take in
// time. ls, requeue and purge take the same filter; show takes one event.
//
// A dead letter is in one of three states: dead, requeued (on its way again; only a receipt
// clears it) or late (it expired or was damaged, and a receipt that came later says that the
// sink has it). requeue takes dead ones alone, and purge spares those that are requeued.
//
// Results go to standard output, progress and hints to standard error. The status is 0 when
// the command did what it was asked to, also when no letter matched; 1 when something failed,
// when show found no such letter, or when a purge was not confirmed; 80 for wrong flags. A
// requeue or a purge that fails or is interrupted says how many letters it had done with;
// running it again does the rest, and nothing twice.
type deadlettersCommand struct {
	Ls      lsCommand      `cmd:"" help:"List dead letters, the oldest failure first."`
	Show    showCommand    `cmd:"" help:"Show one dead letter, with its event and what became of it."`
	Requeue requeueCommand `cmd:"" help:"Put dead letters back into the queue, under their own ids and seqnums."`
	Purge   purgeCommand   `cmd:"" help:"Delete dead letters for good."`
}

// letterStore is how the four commands find the database.
type letterStore struct {
	DatabaseURL string `name:"database-url" secret:"" want:"postgres" required:"" placeholder:"URL" help:"Postgres. WAYBILL_DATABASE_URL_FILE names a file that holds it."`
	process.Lanes
}

func (f letterStore) open(ctx context.Context) (*pipeline.Store, error) {
	return openStore(ctx, f.DatabaseURL, f.Lanes.Lanes)
}

// letterFilter picks dead letters.
type letterFilter struct {
	Sink   string    `env:"-" help:"Only of this sink."`
	Code   string    `env:"-" help:"Only with this code, such as expired."`
	Source string    `env:"-" help:"Only of this source; with an asterisk at its end, of those that begin so."`
	Type   string    `env:"-" help:"Only of this type; with an asterisk at its end, of those that begin so."`
	ID     string    `name:"id" env:"-" help:"Only of events with this id."`
	Since  timePoint `env:"-" placeholder:"TIME" help:"Only what failed at or after this: a time such as 2026-11-25T08:00:00Z, or how long ago, such as 2h."`
	Until  timePoint `env:"-" placeholder:"TIME" help:"Only what failed before this, in the same form."`
}

// any reports whether some flag narrows the letters down.
func (f letterFilter) any() bool { return f != letterFilter{} }

// filter is what package pipeline wants. Durations are taken off Postgres's clock.
func (f letterFilter) filter(ctx context.Context, store *pipeline.Store, states ...pipeline.LetterState) (pipeline.LetterFilter, error) {
	now, err := store.Now(ctx)
	if err != nil {
		return pipeline.LetterFilter{}, err
	}
	out := pipeline.LetterFilter{
		Sink: f.Sink, Code: f.Code, Source: f.Source, Type: f.Type, ID: f.ID,
		Since: f.Since.at(now), Until: f.Until.at(now), States: states,
	}
	if err := out.Validate(); err != nil {
		return out, cli.WrongError{Err: fmt.Errorf("--%w", err)} // its fields are named like the flags
	}
	return out, nil
}

// timePoint is a flag that names a time, as such or by how long ago it was.
type timePoint struct {
	time time.Time
	ago  time.Duration
}

// UnmarshalText reads a time in RFC 3339 or a duration.
func (p *timePoint) UnmarshalText(text []byte) error {
	t, err := time.Parse(time.RFC3339, string(text))
	if err == nil {
		*p = timePoint{time: t}
		return nil
	}
	d, err := time.ParseDuration(string(text))
	if err != nil || d <= 0 {
		return fmt.Errorf("%q: want a time such as 2026-11-25T08:00:00Z, or how long ago such as 2h or 30m", text)
	}
	*p = timePoint{ago: d}
	return nil
}

// String is what UnmarshalText reads, or empty.
func (p timePoint) String() string {
	switch {
	case p.ago > 0:
		return p.ago.String()
	case p.time.IsZero():
		return ""
	default:
		return p.time.Format(time.RFC3339)
	}
}

// at is the time, or zero if none was given.
func (p timePoint) at(now time.Time) time.Time {
	if p.ago > 0 {
		return now.Add(-p.ago)
	}
	return p.time
}

// letterAmount is how many letters a command that changes them takes.
type letterAmount struct {
	Limit int  `env:"-" default:"1000" help:"At most this many."`
	All   bool `env:"-" help:"All that match, however many. Needed too where no flag narrows them down."`
}

func (a letterAmount) validate(f letterFilter) error {
	switch {
	case a.Limit < 1:
		return fmt.Errorf("--limit: %d; want at least 1, or --all", a.Limit)
	case !f.any() && !a.All:
		return errors.New("no filter: every dead letter would match; give --sink, --code, --source, --type, --id, --since or --until, or --all if that is meant")
	}
	return nil
}

// left is how many more there may be after n.
func (a letterAmount) left(n int) int {
	if a.All {
		return letterStep
	}
	return min(a.Limit-n, letterStep)
}

// letterStep bounds what one transaction takes on.
const letterStep = 500

// walkLetters calls step until the walk is done or the amount is reached, and says on standard
// error how far it is. It returns the sum, and whether there may be more.
func walkLetters(ctx context.Context, con *console, w *pipeline.LetterWalk, amount letterAmount, what string, step func(limit int) (int, error)) (sum int, more bool, err error) {
	told := time.Now()
	for !w.Done() && amount.left(sum) > 0 {
		n, err := step(amount.left(sum))
		if err != nil {
			return sum, true, interrupted(ctx, err)
		}
		sum += n
		if time.Since(told) > progressEvery {
			told = time.Now()
			_, _ = fmt.Fprintf(con.err, "%s %s so far, %d looked at\n", plural(sum, "dead letter"), what, w.Seen)
		}
	}
	return sum, !w.Done(), nil
}

// progressEvery is the pause between two words on progress.
const progressEvery = time.Second

// undone says how far a command came that failed.
func undone(err error, n int, what string) error {
	return fmt.Errorf("%w (%s %s before; run it again for the rest: nothing is done twice)", err, plural(n, "dead letter"), what)
}

// states reads a flag of states.
func states(names []string) (out []pipeline.LetterState) {
	for _, name := range names {
		out = append(out, pipeline.LetterState(strings.TrimSpace(name)))
	}
	return out
}
