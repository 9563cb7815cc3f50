package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/sinks"
)

const (
	// probeTimeout bounds one probe of a sink.
	probeTimeout = 15 * time.Second
	// probePause is the pause between the probes of a destination that is down: what waits
	// for it waits that much longer than it is away.
	probePause = time.Second
)

// probedSink delivers only once the destination was found fit. The forwarder does not wait
// for that: a destination that is down when it starts must not hold the other sinks up.
type probedSink struct {
	pipeline.Sink
	tried chan struct{} // closed after the first probe

	mu  sync.Mutex // guards err
	err error      // of the newest probe, or nil
}

var _ pipeline.Sink = (*probedSink)(nil)

func newProbedSink(s pipeline.Sink) *probedSink {
	return &probedSink{Sink: s, tried: make(chan struct{})}
}

// probe returns once the destination was found fit, or ctx has ended, or with an error if it
// answers and is unfit.
func (s *probedSink) probe(ctx context.Context, log *slog.Logger) error {
	for told := false; ; told = true {
		err := s.probeOnce(ctx)
		switch {
		case errors.Is(err, sinks.ErrUnfit):
			return fmt.Errorf("sink %s: %w", s.Name(), err)
		case err == nil && told:
			log.Info("sink was probed and is fit", "sink", s.Name())
			return nil
		case err == nil || ctx.Err() != nil:
			return nil
		case !told:
			log.Warn("sink cannot be probed yet; it gets nothing until it can", "sink", s.Name(), "error", err)
		}
		sleep(ctx, probePause)
	}
}

func (s *probedSink) probeOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	err := s.Probe(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
	select {
	case <-s.tried:
	default:
		close(s.tried)
	}
	return err
}

// Send implements pipeline.Sink. It waits for the first probe, and fails until one succeeds.
func (s *probedSink) Send(ctx context.Context, lane int, items []pipeline.Item) ([]pipeline.Result, error) {
	select {
	case <-s.tried:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s.mu.Lock()
	err := s.err
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return s.Sink.Send(ctx, lane, items)
}
