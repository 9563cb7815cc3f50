package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/waybillhq/waybill/internal/cli"
	"github.com/waybillhq/waybill/internal/process"
	"github.com/waybillhq/waybill/pipeline"
)

// lanesCommand looks at the queues of the sinks, lane by lane, and lets them stand still and go on.
type lanesCommand struct {
	Ls     lanesLsCommand     `cmd:"" default:"withargs" help:"Show each lane of each sink: who has it, what waits, how old it is. The default."`
	Pause  lanesPauseCommand  `cmd:"" help:"Let lanes of a sink, or the whole sink, stand still. What waits stays queued, and is not retransmitted."`
	Resume lanesResumeCommand `cmd:"" help:"Let paused lanes go on."`
}

// pipelineServers is how a command finds both servers of a pipeline.
type pipelineServers struct {
	DatabaseURL string `name:"database-url" secret:"" want:"postgres" required:"" placeholder:"URL" help:"Postgres. WAYBILL_DATABASE_URL_FILE names a file that holds it."`
	process.NATS
	process.Lanes
}

// open opens both; done closes them.
func (c pipelineServers) open(ctx context.Context) (store *pipeline.Store, queue *pipeline.Queue, done func(), err error) {
	if store, err = openStore(ctx, c.DatabaseURL, c.Lanes.Lanes); err != nil {
		return nil, nil, nil, err
	}
	queue, nc, err := connectQueue(ctx, c.NATS, lookTimeout)
	if err != nil {
		store.Close()
		return nil, nil, nil, err
	}
	return store, queue, func() { nc.Close(); store.Close() }, nil
}

type lanesLsCommand struct {
	pipelineServers
	outputFlag
	Sink string `env:"-" help:"Only of this sink."`
	Lane []int  `env:"-" want:"lane" help:"Only these lanes."`
}

// laneState is one lane of one sink, as -o json prints it.
type laneState struct {
	pipeline.SinkLane
	// Forwarder that has it, since when; empty: nobody has.
	Forwarder string    `json:"forwarder,omitempty"`
	Since     time.Time `json:"since,omitzero"`
	Paused    bool      `json:"paused"`
	// PausedSince and Reason are the pause's.
	PausedSince time.Time `json:"paused_since,omitzero"`
	Reason      string    `json:"reason,omitempty"`
	// What waits in Postgres for the sink.
	Batches int64 `json:"pending_batches"`
	Events  int64 `json:"pending_events"`
	Bytes   int64 `json:"pending_bytes"`
	// Oldest is the age of the oldest event that waits, ExpiresIn when the first of them becomes a
	// dead letter, both in seconds by Postgres's clock; ExpiresIn is absent where none does.
	Oldest    float64  `json:"oldest_age_seconds"`
	ExpiresIn *float64 `json:"expires_in_seconds,omitempty"`
	// Of the queue in JetStream: up to which sequence all is acked, and how many batches are above.
	// Absent: the lane has no consumer.
	Floor  *uint64 `json:"floor,omitempty"`
	Queued *uint64 `json:"queued_batches,omitempty"`
}

// Run shows the lanes.
func (c *lanesLsCommand) Run(ctx context.Context, con *console) error {
	store, queue, done, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := checkPlaces(ctx, store, c.Sink, c.Lane); err != nil {
		return err
	}
	states, err := laneStates(ctx, store, queue)
	if err != nil {
		return err
	}
	states = slices.DeleteFunc(states, func(s laneState) bool {
		return c.Sink != "" && s.Sink != c.Sink || len(c.Lane) > 0 && !slices.Contains(c.Lane, s.Lane)
	})
	if !c.json() {
		return writeLaneStates(con, states)
	}
	for _, s := range states {
		if err := c.print(con, "", s); err != nil {
			return err
		}
	}
	return nil
}

// checkPlaces names the sink or lane that the pipeline does not have. An empty sink is any.
func checkPlaces(ctx context.Context, store *pipeline.Store, sink string, lanes []int) error {
	names, err := store.Sinks(ctx)
	if err != nil {
		return err
	}
	if sink != "" && !slices.Contains(names, sink) {
		return cli.WrongError{Err: fmt.Errorf("--sink: %q; the pipeline has %s", sink, strings.Join(names, ", "))}
	}
	return checkLanes(lanes, store.Lanes(), nil)
}

// checkLanes names the lane that a pipeline of so many lanes does not have, unless it is one of the others that are
// known.
func checkLanes(lanes []int, of int, known []int) error {
	for _, lane := range lanes {
		if (lane < 0 || lane >= of) && !slices.Contains(known, lane) {
			return cli.WrongError{Err: fmt.Errorf("--lane: %d; the pipeline has the lanes 0 to %d", lane, of-1)}
		}
	}
	return nil
}

// laneStates returns every lane of every sink, by sink and lane.
func laneStates(ctx context.Context, store *pipeline.Store, queue *pipeline.Queue) ([]laneState, error) {
	sinks, err := store.Sinks(ctx)
	if err != nil {
		return nil, err
	}
	holders, err := pipeline.LaneHolders(ctx, queue)
	if err != nil {
		return nil, fmt.Errorf("look for lane owners: %w", err)
	}
	pauses, err := pipeline.PausesOf(ctx, queue, sinks)
	if err != nil {
		return nil, err
	}
	queued, err := pipeline.QueuedFor(ctx, queue)
	if err != nil {
		return nil, err
	}
	survey, err := store.Survey(ctx)
	if err != nil {
		return nil, err
	}
	waiting := map[pipeline.SinkLane]pipeline.Backlog{}
	for _, b := range survey.Backlogs {
		waiting[pipeline.SinkLane{Sink: b.Sink, Lane: b.Lane}] = b
	}
	var states []laneState
	for _, sink := range sinks {
		for lane := range store.Lanes() {
			place := pipeline.SinkLane{Sink: sink, Lane: lane}
			s := laneState{SinkLane: place, Forwarder: holders[place].Forwarder, Since: holders[place].Since}
			s.setPause(pauses[sink])
			if b, ok := waiting[place]; ok {
				s.setBacklog(b, survey.Now)
			}
			if q, ok := queued[place]; ok {
				s.Floor, s.Queued = &q.Floor, &q.Batches
			}
			states = append(states, s)
		}
	}
	return states, nil
}

func (s *laneState) setPause(of pipeline.SinkPauses) {
	if p, ok := of.Of(s.Lane); ok {
		s.Paused, s.PausedSince, s.Reason = true, p.Since, p.Reason
	}
}

func (s *laneState) setBacklog(b pipeline.Backlog, now time.Time) {
	s.Batches, s.Events, s.Bytes = b.Batches, b.Events, b.Bytes
	s.Oldest = max(0, now.Sub(b.OldestAccepted).Seconds())
	if !b.OldestExpires.IsZero() {
		in := b.OldestExpires.Sub(now).Seconds()
		s.ExpiresIn = &in
	}
}

func writeLaneStates(con *console, states []laneState) error {
	table := tabwriter.NewWriter(con.out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "sink\tlane\towner\tpending events\tbytes\toldest\texpires in\tfloor\tqueued batches") // Flush tells
	for _, s := range states {
		owner := cmp.Or(s.Forwarder, "nobody")
		if s.Paused {
			owner = strings.TrimSuffix("paused: "+s.Reason, ": ")
			if s.Forwarder != "" {
				owner += " (" + s.Forwarder + " ends what it has)"
			}
		}
		oldest, expires, floor, queued := "-", "-", "-", "-"
		if s.Events > 0 {
			oldest = seconds(s.Oldest)
		}
		if s.ExpiresIn != nil {
			expires = seconds(*s.ExpiresIn)
		}
		if s.Floor != nil {
			floor, queued = fmt.Sprint(*s.Floor), fmt.Sprint(*s.Queued)
		}
		_, _ = fmt.Fprintf(table, "%s\t%d\t%s\t%d\t%d\t%s\t%s\t%s\t%s\n", s.Sink, s.Lane, oneLine(owner), s.Events, s.Bytes, oldest, expires, floor, queued)
	}
	return table.Flush()
}

// seconds writes a number of seconds for people.
func seconds(n float64) string {
	return time.Duration(n * float64(time.Second)).Round(100 * time.Millisecond).String()
}

// lanesChange is what pause and resume have in common.
type lanesChange struct {
	pipelineServers
	outputFlag
	Sink string        `required:"" env:"-" help:"The sink."`
	Lane []int         `env:"-" want:"lane" help:"These lanes of it. Default: all, also those that it will have."`
	Wait time.Duration `env:"-" want:"not-negative" default:"30s" help:"How long to wait until the forwarders have done so; 0: not at all."`
}

type lanesPauseCommand struct {
	lanesChange
	Reason string `env:"-" help:"Why, in a few words. Shown wherever the pause is."`
}

type lanesResumeCommand struct{ lanesChange }

// pauseResult is what is paused of the sink now, as -o json prints it.
type pauseResult struct {
	Sink string `json:"sink"`
	pipeline.SinkPauses
	// Held are lanes that are paused and that a forwarder still has, or that are not and nobody has yet.
	Held []int `json:"not_yet,omitempty"`
}

// Run pauses, and waits until no forwarder has the lanes any more.
func (c *lanesPauseCommand) Run(ctx context.Context, con *console) error {
	return c.run(ctx, con, func(queue *pipeline.Queue) (pipeline.SinkPauses, error) {
		return pipeline.PauseLanes(ctx, queue, c.Sink, c.Lane, c.Reason)
	}, true)
}

// Run resumes, and waits until forwarders have the lanes again.
func (c *lanesResumeCommand) Run(ctx context.Context, con *console) error {
	return c.run(ctx, con, func(queue *pipeline.Queue) (pipeline.SinkPauses, error) {
		return pipeline.ResumeLanes(ctx, queue, c.Sink, c.Lane)
	}, false)
}

func (c *lanesChange) run(ctx context.Context, con *console, change func(*pipeline.Queue) (pipeline.SinkPauses, error), pausing bool) error {
	store, queue, done, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := checkPlaces(ctx, store, c.Sink, c.Lane); err != nil {
		return err
	}
	now, err := change(queue)
	if err != nil {
		return err
	}
	result := pauseResult{Sink: c.Sink, SinkPauses: now}
	if result.Held, err = c.await(ctx, con, queue, store.Lanes(), pausing); err != nil {
		return fmt.Errorf("it is noted, and whether the forwarders have seen it is not known: %w", err)
	}
	if pausing {
		c.warnOfExpiry(ctx, con, store)
	}
	return c.report(con, result, pausing)
}

// await waits until the lanes are held by nobody, where they were paused, or else by somebody. It
// returns those of which that is not so.
func (c *lanesChange) await(ctx context.Context, con *console, queue *pipeline.Queue, lanes int, pausing bool) (left []int, err error) {
	deadline := time.Now().Add(c.Wait)
	for told := false; ; told = true {
		holders, err := pipeline.LaneHolders(ctx, queue)
		if err != nil {
			return nil, err
		}
		left = nil
		for lane := range lanes {
			_, held := holders[pipeline.SinkLane{Sink: c.Sink, Lane: lane}]
			if held == pausing && (len(c.Lane) == 0 || slices.Contains(c.Lane, lane)) {
				left = append(left, lane)
			}
		}
		if len(left) == 0 || time.Now().After(deadline) {
			return left, nil
		}
		if !told {
			_, _ = fmt.Fprintln(con.err, "noted; waiting for the forwarders")
		}
		pause(ctx, 200*time.Millisecond)
		if ctx.Err() != nil {
			return left, ctx.Err()
		}
	}
}

// warnOfExpiry says when the first event that waits becomes a dead letter: a pause stops no clock. It
// says nothing where that cannot be found out.
func (c *lanesChange) warnOfExpiry(ctx context.Context, con *console, store *pipeline.Store) {
	survey, err := store.Survey(ctx)
	if err != nil {
		return
	}
	for _, b := range survey.Backlogs {
		in := b.OldestExpires.Sub(survey.Now)
		if b.Sink == c.Sink && !b.OldestExpires.IsZero() && in < 24*time.Hour && (len(c.Lane) == 0 || slices.Contains(c.Lane, b.Lane)) {
			_, _ = fmt.Fprintf(con.err, "lane %d has events that become dead letters from %v on, unless it is resumed before\n", b.Lane, in.Round(time.Second))
		}
	}
}

func (c *lanesChange) report(con *console, r pauseResult, pausing bool) error {
	if len(r.Held) > 0 {
		remedy := "no forwarder has taken them yet: is one alive that serves the sink? (`waybill status`)"
		if pausing {
			remedy = "a forwarder still has them: it ends its request first, or is of a version that knows of no pauses (`waybill lanes` shows when it has)"
		}
		_, _ = fmt.Fprintf(con.err, "lanes %s: %s\n", ranges(r.Held), remedy)
	}
	text := "nothing of " + r.Sink + " is paused"
	if r.All != nil {
		text = "all lanes of " + r.Sink + " are paused"
	} else if len(r.Lanes) > 0 {
		var lanes []int
		for lane := range r.Lanes {
			lanes = append(lanes, lane)
		}
		slices.Sort(lanes)
		text = "paused of " + r.Sink + ": lanes " + ranges(lanes)
	}
	if err := c.print(con, text, r); err != nil {
		return err
	}
	if len(r.Held) > 0 && c.Wait > 0 {
		return errors.New("it is noted, and the forwarders have not done so within --wait=" + c.Wait.String())
	}
	return nil
}
