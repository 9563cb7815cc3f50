package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/sinks"
)

// destination is a sink whose probe answers as the test wants.
type destination struct {
	pipeline.Sink
	probes []error // one after another; then nil
	sent   int
}

func (d *destination) Name() string { return "archive" }

func (d *destination) Probe(context.Context) error {
	if len(d.probes) == 0 {
		return nil
	}
	err := d.probes[0]
	d.probes = d.probes[1:]
	return err
}

func (d *destination) Send(context.Context, int, []pipeline.Item) ([]pipeline.Result, error) {
	d.sent++
	return nil, nil
}

var errAway = errors.New("connection refused")

func TestProbedSinkSendsOnceTheDestinationIsFit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &destination{probes: []error{errAway, errAway}}
		s := newProbedSink(d)
		sent := make(chan error, 1)
		go func() {
			_, err := s.Send(t.Context(), 0, nil)
			sent <- err
		}()
		synctest.Wait()
		if len(sent) > 0 {
			t.Fatalf("sent before the first probe: %v", <-sent)
		}
		probed := make(chan error, 1)
		go func() { probed <- s.probe(t.Context(), slog.New(slog.DiscardHandler)) }()
		if err := <-sent; !errors.Is(err, errAway) || d.sent > 0 {
			t.Fatalf("sent %d to a destination that is away: %v", d.sent, err)
		}
		if err := <-probed; err != nil {
			t.Fatal(err)
		}
		if _, err := s.Send(t.Context(), 0, nil); err != nil || d.sent != 1 {
			t.Errorf("sent %d to a destination that is fit: %v", d.sent, err)
		}
	})
}

func TestProbeOfAnUnfitDestinationEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newProbedSink(&destination{probes: []error{errAway, fmt.Errorf("it overwrites: %w", sinks.ErrUnfit)}})
		if err := s.probe(t.Context(), slog.New(slog.DiscardHandler)); !errors.Is(err, sinks.ErrUnfit) {
			t.Errorf("probe ended with %v", err)
		}
		if _, err := s.Send(t.Context(), 0, nil); !errors.Is(err, sinks.ErrUnfit) {
			t.Errorf("an unfit destination is sent to: %v", err)
		}
	})
}

func TestProbeEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		away := make([]error, 100)
		for i := range away {
			away[i] = errAway
		}
		if err := newProbedSink(&destination{probes: away}).probe(ctx, slog.New(slog.DiscardHandler)); err != nil {
			t.Error(err)
		}
	})
}
