package replay

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/sinks"
)

// Replay is one replay, or a dry run.
type Replay struct {
	config  Config
	began   time.Time
	source  atomic.Pointer[source]
	sender  atomic.Pointer[sender]
	tally   tally
	resumed atomic.Int64 // events that an earlier process delivered
}

// Result is how a replay ended.
type Result struct {
	Counts
	From  string    `json:"from"` // stream or archive
	Since time.Time `json:"since,omitzero"`
	Until time.Time `json:"until,omitzero"`
	// Resumed are the events that were delivered before, under the same name.
	Resumed int64 `json:"resumed"`
	// Before reports that the replay was done already, and nothing was sent.
	Before bool `json:"done_before"`
}

// Progress is how far a replay is.
type Progress struct {
	Part    float64 // of 0 to 1, of what is to be read
	Events  int64   // delivered, by earlier processes too
	Here    int64   // delivered by this one
	Refused int64
	Trouble string // why the newest request is to be tried again; empty: none is
}

// ErrStopped means that a replay was interrupted.
var ErrStopped = errors.New("interrupted")

// New makes a replay that has not begun.
func New(c Config) (*Replay, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return &Replay{config: c, tally: tally{counts: newCounts()}}, nil
}

// Count reads what a replay would deliver, and delivers nothing.
func (r *Replay) Count(ctx context.Context) (Result, error) {
	s, err := r.config.resolve(ctx, time.Now())
	if err != nil {
		return Result{}, r.stopped(ctx, err)
	}
	src, err := r.open(ctx, s, position{})
	if err != nil {
		return Result{}, r.stopped(ctx, err)
	}
	err = src.read(ctx, func(p *portion) error {
		r.tally.add(func(c *Counts) {
			for _, typ := range p.types {
				c.count(p.batch.Lane, typ)
			}
		})
		return ctx.Err()
	}, func(uint64) error { return ctx.Err() })
	return r.result(s, src), r.stopped(ctx, err)
}

// Run delivers, or goes on where an earlier process under the same name stopped. The result is what
// was delivered under that name, also where there is an error.
func (r *Replay) Run(ctx context.Context) (Result, error) {
	if r.config.Sink == nil {
		return Result{}, errors.New("replay: no sink")
	}
	begun := state{Order: r.config.order(), Begun: time.Now().UTC()}
	var keep *keeper
	if r.config.Resumable {
		var before *state
		var err error
		if keep, before, err = openKeeper(ctx, r.config); err != nil {
			return Result{}, r.stopped(ctx, err)
		}
		if before != nil {
			return r.resume(ctx, keep, *before, begun.Order)
		}
	}
	var err error
	if begun.Span, err = r.config.resolve(ctx, time.Now()); err != nil {
		return Result{}, r.stopped(ctx, err)
	}
	begun.Counts = newCounts()
	return r.run(ctx, keep, begun)
}

// resume goes on with what was begun.
func (r *Replay) resume(ctx context.Context, keep *keeper, before state, order order) (Result, error) {
	if what := before.Order.differs(order); what != "" {
		return Result{}, fmt.Errorf("--name: a replay %s was begun with %s; give the same flags to go on with it, or another name", r.config.Name, what)
	}
	var err error
	if !before.Done {
		if before, err = keep.takeOver(ctx, before); err != nil {
			return Result{}, r.stopped(ctx, err)
		}
	}
	r.tally.add(func(c *Counts) { *c = merged(newCounts(), before.Counts) })
	r.resumed.Store(before.Counts.Events)
	if before.Done {
		result := r.result(before.Span, nil)
		result.Before = true
		return result, nil
	}
	return r.run(ctx, keep, before)
}

// merged fills the maps that JSON has left out.
func merged(empty, counts Counts) Counts {
	if counts.Lanes == nil {
		counts.Lanes = empty.Lanes
	}
	if counts.Types == nil {
		counts.Types = empty.Types
	}
	if counts.Refusals == nil {
		counts.Refusals = empty.Refusals
	}
	return counts
}

func (r *Replay) run(ctx context.Context, keep *keeper, st state) (Result, error) {
	src, err := r.open(ctx, st.Span, st.Position)
	if err != nil {
		return r.result(st.Span, nil), r.stopped(ctx, err)
	}
	track := newTracker(st.Position)
	now := func() state {
		s := st
		r.tally.add(func(c *Counts) { s.Position, s.Counts = track.position(), c.clone() })
		s.Counts.lack(src.faults())
		return s
	}
	if keep != nil {
		if err := keep.save(ctx, now()); err != nil {
			return r.result(st.Span, nil), r.stopped(ctx, err)
		}
	}
	err = r.deliver(ctx, src, track, keep, now)
	result := r.result(st.Span, src)
	if keep != nil && !errors.Is(err, pipeline.ErrReplayTaken) {
		last := now()
		last.Done = err == nil
		err = errors.Join(err, keep.save(ctx, last))
	}
	return result, r.stopped(ctx, err)
}

// deliver reads and sends, and saves the state now and then.
func (r *Replay) deliver(ctx context.Context, src source, track *tracker, keep *keeper, now func() state) error {
	group, ctx := errgroup.WithContext(ctx)
	ended := make(chan struct{})
	if keep != nil {
		group.Go(func() error { return r.save(ctx, keep, now, ended) })
	}
	group.Go(func() error {
		defer close(ended)
		send := newSender(ctx, r.config, track, &r.tally)
		r.sender.Store(send)
		return send.finish(src.read(send.ctx, send.take, send.passed))
	})
	return group.Wait()
}

// save ends with an error only if another process has taken the replay over.
func (r *Replay) save(ctx context.Context, keep *keeper, now func() state, ended <-chan struct{}) error {
	tick := time.NewTicker(r.config.SaveEvery)
	defer tick.Stop()
	told := false
	for {
		select {
		case <-tick.C:
		case <-ended:
			return nil
		case <-ctx.Done():
			return nil
		}
		err := keep.save(ctx, now())
		if errors.Is(err, pipeline.ErrReplayTaken) {
			return err
		}
		if err != nil && !told {
			r.config.warn("the state cannot be stored for now; a replay that is killed meanwhile repeats more: %v", err)
		}
		told = err != nil
	}
}

func (r *Replay) open(ctx context.Context, s span, from position) (source, error) {
	r.began = time.Now()
	var src source
	if s.From == FromArchive {
		if r.config.Archive == nil {
			return nil, errors.New("--from: the replay was begun from the archive; set --s3-bucket")
		}
		src = &archiveSource{config: r.config, span: s, from: from}
	} else {
		stream, err := r.config.openStream(ctx, s, from)
		if err != nil {
			return nil, err
		}
		src = stream
	}
	r.source.Store(&src)
	return src, nil
}

func (r *Replay) result(s span, src source) Result {
	result := Result{Counts: r.tally.snapshot(), From: s.From, Since: s.Since, Until: s.Until, Resumed: r.resumed.Load()}
	if src != nil {
		result.lack(src.faults())
	}
	return result
}

// stopped turns the end of ctx into ErrStopped.
func (r *Replay) stopped(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil && !errors.Is(err, pipeline.ErrReplayTaken) {
		return ErrStopped
	}
	return err
}

// Progress may be called at any time.
func (r *Replay) Progress() Progress {
	counts := r.tally.snapshot()
	p := Progress{Events: counts.Events, Here: max(counts.Events-r.resumed.Load(), 0), Refused: counts.Refused}
	if src := r.source.Load(); src != nil {
		p.Part = min(max((*src).progress(), 0), 1)
	}
	if send := r.sender.Load(); send != nil {
		if trouble := send.trouble.Load(); trouble != nil {
			p.Trouble = *trouble
		}
	}
	return p
}

var (
	_ source = (*streamSource)(nil)
	_ source = (*archiveSource)(nil)
)

// ArchiveConfig is that of an archive of replays: under a prefix of its own, of parts of batches.
func ArchiveConfig(bucket, prefix string) sinks.ArchiveConfig {
	c := sinks.DefaultArchiveConfig()
	c.Bucket, c.Prefix, c.Partial = bucket, prefix, true
	return c
}

// ArchivePrefix is where the events of a replay go in the archive that has a prefix.
func ArchivePrefix(prefix, name string) string {
	if prefix == "" {
		return "replays/" + name
	}
	return prefix + "/replays/" + name
}
