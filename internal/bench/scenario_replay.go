package bench

import (
	"context"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/pipeline"
)

const (
	// replayEvents is how many events are read back.
	replayEvents = 200_000
	// replayLanes is how many lanes of the archive are read at once, beside one after another.
	replayLanes = 4
)

// runReplay reads back what the stream and the archive keep, in turn, while the system runs.
func runReplay(ctx context.Context, b *Bench) error {
	return b.with(ctx, "replay", nil, func(s *System) error {
		behind, err := s.lastQueued(ctx)
		if err != nil {
			return err
		}
		if err := s.fillForReplay(ctx); err != nil {
			return err
		}
		before, err := s.stillState(ctx)
		if err != nil {
			return err
		}
		readers, err := s.replayers(ctx, behind)
		if err != nil {
			return err
		}
		if err := s.replayInTurn(ctx, readers); err != nil {
			return err
		}
		after, err := s.liveState(ctx)
		if err != nil {
			return err
		}
		changes := before.Changes(after)
		b.figure(Shape, "what reading changed of the live path", float64(len(changes)), fmt.Sprintf("of %d streams, consumers and tables", len(before)))
		if len(changes) > 0 {
			return fmt.Errorf("reading back has changed the live path: %s", strings.Join(changes, "; "))
		}
		return nil
	})
}

// fillForReplay lets both sinks take what will be read back.
func (s *System) fillForReplay(ctx context.Context) error {
	fill := backlog("fill", replayEvents)
	fill.Bytes, fill.Callers = 1<<10, 16
	_, err := s.Run(ctx, fill)
	return err
}

// lastQueued is the sequence of the newest message of EVENTS; 0: there is none.
func (s *System) lastQueued(ctx context.Context) (uint64, error) {
	js, err := jetstream.New(s.nats)
	if err != nil {
		return 0, fmt.Errorf("end of the queue: %w", err)
	}
	stream, err := js.Stream(ctx, pipeline.EventsStream)
	if err != nil {
		return 0, fmt.Errorf("end of the queue: %w", err)
	}
	return stream.CachedInfo().State.LastSeq, nil
}

// replayers are all that can be read back.
func (s *System) replayers(ctx context.Context, behind uint64) ([]replayer, error) {
	last, err := s.lastQueued(ctx)
	if err != nil {
		return nil, err
	}
	out := []replayer{{queueReplay, "messages", s.replayQueue(behind, last)}}
	if s.stack == nil {
		s.bench.missing("reading back the archive: the system was not started here")
		return out, nil
	}
	reader, err := s.stack.S3.ArchiveReader(ctx)
	if err != nil {
		return nil, err
	}
	for _, atOnce := range []int{1, replayLanes} {
		out = append(out, replayer{fmt.Sprintf("archive replay, %d at once", atOnce), "JSON lines", replayArchive(reader, atOnce)})
	}
	return out, nil
}

// replayInTurn reads with each reader several times, in turn, and makes figures of the medians.
func (s *System) replayInTurn(ctx context.Context, readers []replayer) error {
	chart := Series{Title: "Reading back", X: "pass", Y: "events/s", Kind: Absolute}
	passes, verdicts := map[string][]replayPass{}, map[string]Verdict{}
	err := compare(s.bench.config.Settings.runs(), readers, func(r replayer, run int) error {
		s.bench.live(fmt.Sprintf("reading back: %s, pass %d", r.name, run+1))
		p, v, err := s.replay(ctx, r)
		if err != nil {
			return err
		}
		passes[r.name] = append(passes[r.name], p)
		chart.add(r.name, float64(run+1), p.eventRate())
		if worst, known := verdicts[r.name]; !known || worst.OK() {
			verdicts[r.name] = v
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, r := range readers {
		s.replayFigures(r, passes[r.name])
		s.bench.report.Correctness = append(s.bench.report.Correctness, verdicts[r.name])
		s.bench.config.Say("correctness: " + verdicts[r.name].String())
	}
	s.bench.series(chart)
	return nil
}

func (s *System) replayFigures(r replayer, passes []replayPass) {
	s.bench.overRuns(Absolute, r.name, valuesOf(passes, replayPass.eventRate), "events/s")
	s.bench.overRuns(Absolute, r.name+", "+r.what, valuesOf(passes, replayPass.byteRate), "MiB/s")
	s.bench.overRuns(Absolute, r.name+", CPU of the reader", valuesOf(passes, replayPass.perEvent), "µs/event")
}
