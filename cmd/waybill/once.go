package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/waybillhq/waybill/internal/devrun"
	"github.com/waybillhq/waybill/internal/roundtrip"
	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/sinks"
)

const (
	// settlePoll is the pause between looks at what is pending.
	settlePoll = 50 * time.Millisecond
	// settleStuck is how long nothing may become less before waiting is given up: longer
	// than a lane needs to move to another forwarder, and a batch to be retransmitted.
	settleStuck = time.Minute
	// deadLettersRead bounds the count of dead letters.
	deadLettersRead = 1_000_000

	ingressSink = "ingress"
	archiveSink = "archive"
)

// once sends events, waits until they are settled, and says what each sink has.
func (c *devCommand) once(ctx context.Context, con *console, screen *screen, stack *devrun.Stack) error {
	trip, err := newTrip(ctx, stack)
	if err != nil {
		return err
	}
	defer trip.store.Close()
	plan := roundtrip.DefaultPlan("once-"+strconv.FormatInt(time.Now().UnixMilli(), 36), *c.Once)
	began := time.Now()
	ledger, err := trip.send(ctx, screen, plan)
	if err != nil {
		return interrupted(ctx, err)
	}
	sent := time.Now()
	screen.line(fmt.Sprintf("sent %d events in %.1f s, %.0f a second", *c.Once, sent.Sub(began).Seconds(), float64(*c.Once)/sent.Sub(began).Seconds()))
	pending, err := trip.settle(ctx, screen)
	if err != nil {
		return interrupted(ctx, err)
	}
	took := time.Since(began)
	result, err := trip.verify(ctx, ledger)
	if err != nil {
		return interrupted(ctx, err)
	}
	result.pending, result.took, result.sent = pending, took, *c.Once
	if err := result.write(con); err != nil {
		return err
	}
	return result.verdict()
}

// interrupted keeps a command that was stopped from passing for one that did its work.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	return err
}

// trip is one way through a stack and back.
type trip struct {
	stack    *devrun.Stack
	store    *pipeline.Store
	reader   *sinks.ArchiveReader
	ends     map[int]int64 // of the archive's lanes before
	received int64         // by the endpoint before
}

// newTrip notes where the sinks end, so that what is there already is not read again.
func newTrip(ctx context.Context, stack *devrun.Stack) (*trip, error) {
	t := &trip{stack: stack}
	var err error
	if t.reader, err = stack.S3.ArchiveReader(ctx); err != nil {
		return nil, err
	}
	if t.ends, err = roundtrip.ArchiveEnds(ctx, t.reader); err != nil {
		return nil, err
	}
	if t.received, err = roundtrip.EndpointReceived(ctx, stack.EndpointAdmin); err != nil {
		return nil, err
	}
	t.store, err = stack.OpenStore(ctx)
	return t, err
}

func (t *trip) send(ctx context.Context, screen *screen, plan roundtrip.Plan) (*roundtrip.Ledger, error) {
	config := roundtrip.DefaultSenderConfig(t.stack.HTTP, t.stack.GRPC)
	config.Progress = new(atomic.Int64)
	done := make(chan struct{})
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				screen.live(fmt.Sprintf("accepted %d of %d", config.Progress.Load(), plan.Events))
			}
		}
	}()
	ledger, err := roundtrip.Send(ctx, config, plan)
	close(done)
	<-shown
	return ledger, err
}

// settle waits until nothing is pending, and says what still is when that takes too long.
func (t *trip) settle(ctx context.Context, screen *screen) (map[string]pipeline.Backlog, error) {
	defer screen.end()
	least, since := int64(-1), time.Now()
	for {
		survey, err := t.store.Survey(ctx)
		if err != nil && time.Since(since) > settleStuck {
			return nil, err
		}
		pending := survey.BySink()
		left := int64(0)
		for _, b := range pending {
			left += b.Events
		}
		switch {
		case err == nil && left == 0:
			return nil, nil
		case err == nil && (least < 0 || left < least):
			least, since = left, time.Now()
		case time.Since(since) > settleStuck:
			return pending, nil
		}
		screen.live("waiting: " + renderPending(pending))
		select {
		case <-time.After(settlePoll):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// verify reads back what the sinks have.
func (t *trip) verify(ctx context.Context, ledger *roundtrip.Ledger) (*tripResult, error) {
	result := &tripResult{notAccepted: ledger.NotAccepted(), unknown: ledger.Unknown()}
	ingress, err := ledger.Verify(ingressSink, roundtrip.EndpointDeliveries(ctx, t.stack.EndpointAdmin, t.received))
	if err != nil {
		return nil, err
	}
	archive, err := ledger.Verify(archiveSink, roundtrip.ArchiveDeliveries(ctx, t.reader, t.ends))
	if err != nil {
		return nil, err
	}
	result.reports = []roundtrip.Report{ingress, archive}
	result.retransmits = t.stack.Counters(ctx).Retransmits
	if result.deadLetters, err = t.store.DeadLetters(ctx, deadLettersRead); err != nil {
		return nil, err
	}
	return result, nil
}

// tripResult is what `waybill dev --once` says in the end.
type tripResult struct {
	reports     []roundtrip.Report
	pending     map[string]pipeline.Backlog
	deadLetters map[[2]string]int64 // by sink and code
	notAccepted error
	unknown     int
	retransmits int64
	sent        int
	took        time.Duration
}

func (r *tripResult) write(con *console) error {
	if _, err := fmt.Fprintln(con.out); err != nil {
		return err
	}
	if err := roundtrip.WriteTable(con.out, r.reports); err != nil {
		return err
	}
	_, err := fmt.Fprintf(con.out, "pending %s; %s; retransmitted %d; unanswered tries %d\n%d events in %.1f s, %.0f a second from the first request to the last settled\n",
		renderPending(r.pending), renderDeadLetters(r.deadLetters), r.retransmits, r.unknown,
		r.sent, r.took.Seconds(), float64(r.sent)/r.took.Seconds())
	return err
}

// verdict is nil if nothing is missing or wrong. Without a retransmission nothing may be
// out of order or double either; with one, an event may come late, and to the endpoint,
// which gets each at least once, again. The archive has each event once in any case.
func (r *tripResult) verdict() error {
	var faults []string
	if r.notAccepted != nil {
		faults = append(faults, r.notAccepted.Error())
	}
	for _, report := range r.reports {
		late := report.OutOfOrder == 0 || r.retransmits > 0
		again := report.Double == 0 || (r.retransmits > 0 && report.Sink != archiveSink)
		if !report.Complete() || !late || !again {
			faults = append(faults, report.Sink+" does not have exactly what was accepted, in order")
		}
	}
	if len(r.pending) > 0 {
		faults = append(faults, "pending: "+renderPending(r.pending)+"; nothing more was settled in "+settleStuck.String())
	}
	if len(r.deadLetters) > 0 {
		faults = append(faults, renderDeadLetters(r.deadLetters))
	}
	if len(faults) > 0 {
		return errors.New(strings.Join(faults, "; "))
	}
	return nil
}
