package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/waybillhq/waybill/internal/process"
	"github.com/waybillhq/waybill/pipeline"
)

// statusLetters bounds how many dead letters are counted.
const statusLetters = 100_000

// statusCommand shows the state of a pipeline as Postgres and NATS know it.
type statusCommand struct {
	DatabaseURL string `name:"database-url" secret:"" want:"postgres" required:"" placeholder:"URL" help:"Postgres. WAYBILL_DATABASE_URL_FILE names a file that holds it."`
	process.NATS
	process.Lanes
	outputFlag
	Watch bool          `short:"w" env:"-" help:"Look again and again until interrupted: a screen that refreshes, or a line each time where there is no terminal."`
	Every time.Duration `env:"-" default:"2s" help:"Pause between two looks of --watch."`
}

// Validate refuses a watch without pauses.
func (c *statusCommand) Validate() error {
	if c.Every < 100*time.Millisecond {
		return fmt.Errorf("--every: %v; want at least 100ms", c.Every)
	}
	return nil
}

// status is the state of a pipeline, as -o json prints it.
type status struct {
	At time.Time `json:"at"`
	// Of the parts that could not be asked, and why.
	Problems []string `json:"problems,omitempty"`
	// What is wrong with the pipeline.
	Trouble []trouble `json:"trouble,omitempty"`

	// From Postgres.
	Lanes        int           `json:"lanes,omitempty"`
	Grace        string        `json:"grace,omitempty"`
	Sinks        []sinkStatus  `json:"sinks,omitempty"`
	DeadLetters  []letterCount `json:"dead_letters,omitempty"`
	MoreLetters  bool          `json:"more_dead_letters,omitempty"` // than were counted
	Outbox       outboxStatus  `json:"outbox"`
	postgresDone bool
	away         bool // of a server that could not be asked: it does not answer

	// From NATS.
	Processes []pipeline.Heartbeat `json:"processes,omitempty"`   // by kind and id
	Owners    []laneOwner          `json:"lane_owners,omitempty"` // by sink and lane
	// Paused is what stands still because an operator wants it to, by sink.
	Paused   map[string]pipeline.SinkPauses `json:"paused,omitempty"`
	streams  []pipeline.Buffer
	natsDone bool
}

// sinkStatus is what waits for a sink.
type sinkStatus struct {
	Sink    string `json:"sink"`
	Batches int64  `json:"pending_batches"`
	Events  int64  `json:"pending_events"`
	Bytes   int64  `json:"pending_bytes"`
	// Oldest is the age of the oldest event that waits, in seconds, by Postgres's clock.
	Oldest float64 `json:"oldest_age_seconds"`
	// Overdue batches were queued longer ago than the grace period.
	Overdue int64 `json:"overdue_batches"`
	// NearTTL events have less than a fifth of their time to live left; TTLBudget is how long the
	// first of those that wait has left, in seconds. nil: none expires.
	NearTTL   int64    `json:"near_ttl_events"`
	TTLBudget *float64 `json:"ttl_budget_seconds,omitempty"`
}

// outboxStatus is what is in the outbox.
type outboxStatus struct {
	// Waiting are the rows that no ingest has taken yet, counted up to 100,000, and Oldest the age of the
	// first of them, in seconds.
	Waiting int64   `json:"waiting"`
	Oldest  float64 `json:"oldest_age_seconds"`
	// Refused are those of which no event can be made.
	Refused int64 `json:"refused"`
	trouble error
}

type letterCount struct {
	Sink  string `json:"sink"`
	Code  string `json:"code"`
	Count int64  `json:"count"`
}

// laneOwner is who delivers a lane to a sink.
type laneOwner struct {
	pipeline.SinkLane
	Forwarder string    `json:"forwarder"`
	Since     time.Time `json:"since"`
}

// Run asks both servers and prints what they say. It fails if one does not answer, unless it watches.
func (c *statusCommand) Run(ctx context.Context, con *console) error {
	if c.Watch {
		return c.watch(ctx, con)
	}
	s := c.ask(ctx)
	var err error
	if c.json() {
		err = c.print(con, "", s)
	} else {
		err = s.write(con.out)
	}
	if err != nil {
		return err
	}
	return s.unknown()
}

// unknown is an error where a server could not be asked.
func (s *status) unknown() error {
	var servers []string
	if !s.postgresDone {
		servers = append(servers, "Postgres")
	}
	if !s.natsDone {
		servers = append(servers, "NATS")
	}
	if len(servers) == 0 {
		return nil
	}
	err := fmt.Errorf("the state is not known in full: %s could not be asked; PROBLEM above (in JSON, problems) says what was tried and what to do",
		strings.Join(servers, " and "))
	if s.away {
		return serverError{err, true}
	}
	return err
}

// ask asks both servers at once, so that one that is away does not cost the other's time.
func (c *statusCommand) ask(ctx context.Context) *status {
	s := &status{At: time.Now().UTC()}
	var fromPostgres, fromNATS error
	var wg sync.WaitGroup
	wg.Go(func() { fromPostgres = c.askPostgres(ctx, s) })
	wg.Go(func() { fromNATS = c.askNATS(ctx, s) })
	wg.Wait()
	for _, problem := range []struct {
		server string
		err    error
	}{{"Postgres", fromPostgres}, {"NATS", fromNATS}} {
		if problem.err != nil {
			s.Problems = append(s.Problems, problem.server+": "+oneLine(problem.err.Error()))
			_, away := aboutServer(problem.err)
			s.away = s.away || away
		}
	}
	s.postgresDone, s.natsDone = fromPostgres == nil, fromNATS == nil
	s.findTrouble()
	return s
}

func (c *statusCommand) askPostgres(ctx context.Context, s *status) error {
	store, err := openStore(ctx, c.DatabaseURL, c.Lanes.Lanes)
	if err != nil {
		return err
	}
	defer store.Close()
	s.Lanes, s.Grace = store.Lanes(), store.Grace().String()
	names, err := store.Sinks(ctx)
	if err != nil {
		return err
	}
	survey, err := store.Survey(ctx)
	if err != nil {
		return err
	}
	s.Sinks = sinksOf(names, survey)
	letters, err := store.DeadLetters(ctx, statusLetters)
	if err != nil {
		return err
	}
	s.DeadLetters, s.MoreLetters = countsOf(letters)
	outbox, err := store.SurveyOutbox(ctx, pipeline.OutboxSurvey{})
	if err != nil {
		return err
	}
	s.Outbox = outboxStatus{Waiting: outbox.Waiting, Oldest: outbox.Oldest.Seconds(), Refused: outbox.Refused, trouble: outbox.Trouble()}
	return nil
}

// sinksOf lists the sinks, those too that nothing waits for.
func sinksOf(names []string, survey pipeline.Survey) []sinkStatus {
	pending := survey.BySink()
	for name := range pending {
		if !slices.Contains(names, name) {
			names = append(names, name) // removed a moment ago
		}
	}
	slices.Sort(names)
	out := make([]sinkStatus, 0, len(names))
	for _, name := range names {
		b, waits := pending[name]
		sink := sinkStatus{Sink: name, Batches: b.Batches, Events: b.Events, Bytes: b.Bytes, Overdue: b.Overdue, NearTTL: b.NearTTL}
		if waits {
			sink.Oldest = max(0, survey.Now.Sub(b.OldestAccepted).Seconds())
		}
		if !b.OldestExpires.IsZero() {
			left := max(0, b.OldestExpires.Sub(survey.Now).Seconds())
			sink.TTLBudget = &left
		}
		out = append(out, sink)
	}
	return out
}

// countsOf reports too whether more than were counted may exist.
func countsOf(letters map[[2]string]int64) (counts []letterCount, more bool) {
	total := int64(0)
	for key, n := range letters {
		counts = append(counts, letterCount{Sink: key[0], Code: key[1], Count: n})
		total += n
	}
	slices.SortFunc(counts, func(a, b letterCount) int { return cmp.Or(cmp.Compare(a.Sink, b.Sink), cmp.Compare(a.Code, b.Code)) })
	return counts, total >= statusLetters
}

func (c *statusCommand) askNATS(ctx context.Context, s *status) error {
	queue, nc, err := connectQueue(ctx, c.NATS, lookTimeout)
	if err != nil {
		return err
	}
	defer nc.Close()
	for _, kind := range pipeline.Kinds() {
		live, err := pipeline.LiveProcesses(ctx, queue, kind)
		if err != nil {
			return fmt.Errorf("look for live processes: %w", err)
		}
		slices.SortFunc(live, func(a, b pipeline.Heartbeat) int { return cmp.Compare(a.ID, b.ID) })
		s.Processes = append(s.Processes, live...)
	}
	holders, err := pipeline.LaneHolders(ctx, queue)
	if err != nil {
		return fmt.Errorf("look for lane owners: %w", err)
	}
	for place, holder := range holders {
		s.Owners = append(s.Owners, laneOwner{SinkLane: place, Forwarder: holder.Forwarder, Since: holder.Since})
	}
	if s.Paused, err = pipeline.PausesOf(ctx, queue, nil); err != nil {
		return err
	}
	slices.SortFunc(s.Owners, func(a, b laneOwner) int { return cmp.Or(cmp.Compare(a.Sink, b.Sink), cmp.Compare(a.Lane, b.Lane)) })
	if s.streams, err = pipeline.StreamFills(ctx, queue); err != nil {
		return fmt.Errorf("look at the streams: %w", err)
	}
	return nil
}
