package bench

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/waybillhq/waybill/internal/collector"
	"github.com/waybillhq/waybill/internal/devrun"
)

const (
	// tracedRate is how many events a second are traced, where there are so many: enough for a
	// p95, and too few to cost what they are to measure.
	tracedRate = 50
	// maxSpans bounds the memory that they take here: about 1 KiB each.
	maxSpans = 200_000
	// latencyHistogram is the forwarders' own, of batches, from the transaction's beginning by
	// Postgres's clock to the delivery.
	latencyHistogram = "waybill_forwarder_latency_seconds"
)

// runLatency measures from acceptance to each sink at low and at moderate rates, and takes the way
// apart into its stages by traces.
func runLatency(ctx context.Context, b *Bench) error {
	loads := make([]Load, 0, 3)
	for _, part := range []struct {
		rate   float64
		events int
	}{{25, 1}, {1000, 1}, {10_000, 10}} {
		load := standard(fmt.Sprintf("%.0f/s in calls of %d", part.rate, part.events))
		load.Rate, load.Events, load.Bytes, load.For = part.rate, part.events, 1<<10, 15*time.Second
		loads = append(loads, load)
	}
	if b.config.Given != nil {
		b.missing("the stages between acceptance and delivery: the system was not started here, and sends its spans elsewhere")
		return b.with(ctx, "latency", nil, func(s *System) error {
			for _, load := range loads {
				if _, err := s.Run(ctx, load); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for i, load := range loads {
		if err := b.tracedLatency(ctx, fmt.Sprintf("latency-%d", i+1), load); err != nil {
			return err
		}
	}
	return nil
}

// tracedRatio is the part of a load's events that is traced.
func tracedRatio(load Load) float64 {
	if load.Rate <= 0 {
		return 0.005 // callers send as fast as they can
	}
	return min(1, tracedRate/load.Rate)
}

// tracedLatency puts a load on a system of its own, whose spans come here.
func (b *Bench) tracedLatency(ctx context.Context, name string, load Load) (err error) {
	spans, err := collector.Start("127.0.0.1:0", maxSpans)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := spans.Close(); err == nil {
			err = closeErr
		}
	}()
	b.config.Settings.apply(&load)
	ratio := tracedRatio(load)
	var stage *Stage
	var ledger *ledger
	var histograms map[string]float64
	trace := func(c *devrun.Config) { c.Env = append(slices.Clone(c.Env), spans.Env(ratio)...) }
	err = b.with(ctx, name, trace, func(s *System) error {
		if stage, err = s.Run(ctx, load); err != nil {
			return err
		}
		ledger = s.ledger
		histograms, err = s.meanLatencies(ctx)
		return err
	})
	if err != nil {
		return err
	}
	all, dropped := spans.Spans() // the processes have stopped: there are no more
	if dropped > 0 {
		b.warn("%s: %d spans came beyond the %d that are kept", load.Name, dropped, maxSpans)
	}
	return b.breakDown(stage, ledger, all, histograms)
}

// meanLatencies is the mean, in milliseconds, of what the forwarders' histogram holds, by sink.
func (s *System) meanLatencies(ctx context.Context) (map[string]float64, error) {
	families, err := s.stack.Metrics(ctx, "forwarder-1")
	if err != nil {
		return nil, err
	}
	out := map[string]float64{}
	for _, m := range families[latencyHistogram].GetMetric() {
		for _, label := range m.GetLabel() {
			if h := m.GetHistogram(); label.GetName() == "sink" && h.GetSampleCount() > 0 {
				out[label.GetValue()] = h.GetSampleSum() / float64(h.GetSampleCount()) * 1000
			}
		}
	}
	return out, nil
}

// breakDown reports the stages of the events that were due in a stage's window, and compares what
// they add up to with the ledger and with the forwarders' histogram.
func (b *Bench) breakDown(st *Stage, l *ledger, spans []collector.Span, histograms map[string]float64) error {
	bySink, odd := journeys(l, spans)
	if odd > 0 {
		b.warn("%s: %d traced events were published or processed more than once, and are left out", st.Load.Name, odd)
	}
	for _, sink := range []string{ingressSink, archiveSink} {
		name := st.Load.Name + ", " + sink
		all := bySink[sink]
		window := slices.DeleteFunc(slices.Clone(all), func(j journey) bool { return !st.inWindow(l.timesOf(j.event).due) })
		if len(window) == 0 {
			return fmt.Errorf("%s: no event of the window was traced to its end; %d spans came", name, len(spans))
		}
		b.config.Say(fmt.Sprintf("%s: %d of %d events of the window were traced", name, len(window), st.Accepted))
		b.stageFigures(name, window)
		if sink == ingressSink {
			b.compareWithLedger(name, l, window)
		}
		if mean, known := histograms[sink]; known {
			own := meanOfBatches(all)
			b.figure(Absolute, name+": begin of the transaction → delivered, mean over batches, of the forwarder's histogram", mean, "ms")
			b.figure(Absolute, name+": the same of the stages", own, "ms")
			b.figure(Shape, name+": stages by histogram", own/mean, "ratio")
		}
	}
	return nil
}

// stageFigures are median, p95 and share of each stage.
func (b *Bench) stageFigures(name string, window []journey) {
	total := meanOf(window, 0, stagesToDelivery)
	for i, stage := range stageNames {
		s := spreadOf(sums(window, i, i+1))
		share := fmt.Sprintf("%.1f %% of begun → delivered", 100*s.mean/total)
		if i < stagesToDelivery {
			b.quietFigure(Shape, name+": "+stage+", share of begun → delivered", s.mean/total, "of 1")
		} else {
			share = "behind the delivery"
		}
		b.quietFigure(Absolute, name+": "+stage+" p50", s.median, "ms")
		b.quietFigure(Absolute, name+": "+stage+" p95", s.p95, "ms")
		b.config.Say(fmt.Sprintf("%s: %-7s p50 %8.3f ms  p95 %8.3f ms  %s", name, stage, s.median, s.p95, share))
	}
}

// compareWithLedger says how far the stages are from what producer and endpoint saw.
func (b *Bench) compareWithLedger(name string, l *ledger, window []journey) {
	var answered, due, off, offDue []float64
	kept := slices.DeleteFunc(slices.Clone(window), func(j journey) bool { t := l.timesOf(j.event); return t.accepted == 0 || t.arrived == 0 })
	if len(kept) == 0 {
		return
	}
	for _, j := range kept {
		t := l.timesOf(j.event)
		a := milliseconds(time.Duration(max(t.arrived, t.accepted)-t.accepted) * tickLength)
		d := milliseconds(time.Duration(t.arrived-t.due) * tickLength)
		answered, due = append(answered, a), append(due, d)
		off = append(off, milliseconds(j.sum(stagesToAnswer, stagesToDelivery))-a)
		offDue = append(offDue, milliseconds(j.sum(0, stagesToDelivery))-d)
	}
	for _, c := range []struct {
		what          string
		stages, saw   spread
		differenceOff spread
	}{
		{"accepted → delivered", spreadOf(sums(kept, stagesToAnswer, stagesToDelivery)), spreadOf(answered), spreadOf(off)},
		{"due → delivered", spreadOf(sums(kept, 0, stagesToDelivery)), spreadOf(due), spreadOf(offDue)},
	} {
		for _, p := range []struct {
			at          string
			stages, saw float64
		}{{"p50", c.stages.median, c.saw.median}, {"p95", c.stages.p95, c.saw.p95}} {
			b.figure(Absolute, fmt.Sprintf("%s: %s, %s of the ledger", name, c.what, p.at), p.saw, "ms")
			b.figure(Absolute, fmt.Sprintf("%s: %s, %s of the sum of the stages", name, c.what, p.at), p.stages, "ms")
		}
		b.figure(Absolute, fmt.Sprintf("%s: %s, sum of the stages less the ledger's, median over the events", name, c.what), c.differenceOff.median, "ms")
	}
}

// sums are the stages from one up to another of each journey, in milliseconds.
func sums(list []journey, from, past int) []float64 {
	out := make([]float64, len(list))
	for i := range list {
		out[i] = milliseconds(list[i].sum(from, past))
	}
	return out
}

func meanOf(list []journey, from, past int) float64 { return spreadOf(sums(list, from, past)).mean }

// meanOfBatches is the mean from the commit's beginning to the delivery over batches, in
// milliseconds: an event of a batch of n stands for an nth of it.
func meanOfBatches(list []journey) float64 {
	total, weight := 0.0, 0.0
	for i := range list {
		part := 1 / float64(list[i].batch)
		total += part * milliseconds(list[i].sum(1, stagesToDelivery))
		weight += part
	}
	return total / weight
}
