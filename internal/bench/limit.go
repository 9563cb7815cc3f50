package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	limitStream  = "WAYBILL_BENCH_LIMIT"
	limitSubject = "waybill.bench.limit"
	// jetstreamWindow is how many messages without an acknowledgement JetStream gets.
	jetstreamWindow = 256
	fsyncBytes      = 8 << 10 // a page of WAL
	commitRows      = 500
)

// runLimit measures what bounds everything else on this machine.
func runLimit(ctx context.Context, b *Bench) error {
	return b.with(ctx, "limit", nil, func(s *System) error {
		load := standard("limit")
		load.For, load.WarmUp = 3*time.Second, time.Second
		b.config.Settings.apply(&load)
		return errors.Join(
			s.limitOfPostgres(ctx, load),
			s.limitOfJetStream(ctx, load),
			s.limitOfEcho(ctx, load),
			s.limitOfDisk(load.For),
		)
	})
}

func (s *System) limitOfPostgres(ctx context.Context, load Load) error {
	if s.databaseURL == "" {
		return nil
	}
	for _, bytes := range []int{load.Bytes, 1 << 10} {
		load.Bytes = bytes
		rate, err := s.copyRate(ctx, load, load.For)
		if err != nil {
			return err
		}
		s.bench.figure(Absolute, fmt.Sprintf("COPY of rows with %d B of data", bytes), rate, "rows/s")
	}
	h, err := s.commitLatency(ctx, commitRows, time.Millisecond)
	if err != nil {
		return err
	}
	s.quantiles("commit of one row", h)
	return nil
}

func (s *System) quantiles(name string, h *hdrhistogram.Histogram) {
	q := quantilesOf(h)
	s.bench.figure(Absolute, name+" p50", q.P50, "ms")
	s.bench.figure(Absolute, name+" p99", q.P99, "ms")
}

// limitOfJetStream publishes messages with the bytes of a call.
func (s *System) limitOfJetStream(ctx context.Context, load Load) (err error) {
	if s.nats == nil {
		return nil
	}
	js, err := jetstream.New(s.nats, jetstream.WithPublishAsyncMaxPending(jetstreamWindow))
	if err != nil {
		return fmt.Errorf("limit of JetStream: %w", err)
	}
	if _, err := js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: limitStream, Subjects: []string{limitSubject}, Storage: jetstream.FileStorage, MaxBytes: 1 << 30, Discard: jetstream.DiscardOld,
	}); err != nil {
		return fmt.Errorf("limit of JetStream: %w", err)
	}
	defer func() { err = errors.Join(err, js.DeleteStream(ctx, limitStream)) }()
	calls, err := load.content().deal(s.ledger.run)
	if err != nil {
		return err
	}
	body := encodeBatch(calls[0]).wire
	messages, began := 0, time.Now()
	for ; time.Since(began) < load.For && ctx.Err() == nil; messages++ {
		if _, err := js.PublishAsync(limitSubject, body); err != nil {
			return fmt.Errorf("limit of JetStream: %w", err)
		}
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-ctx.Done():
		return ctx.Err()
	}
	rate := float64(messages) / time.Since(began).Seconds()
	s.bench.figure(Absolute, fmt.Sprintf("JetStream, messages of %d events", load.Events), rate*float64(load.Events), "events/s")
	h := newHistogram()
	for began := time.Now(); time.Since(began) < load.For; {
		began := time.Now()
		if _, err := js.Publish(ctx, limitSubject, body); err != nil {
			return fmt.Errorf("limit of JetStream: %w", err)
		}
		recordInto(h, time.Since(began))
	}
	s.quantiles("JetStream, one message at a time,", h)
	return nil
}

// echoLoads are what the echo is measured with: batches, and single events by many callers.
func echoLoads(load Load) map[string]Load {
	batches, single, streams, web := load, load, load, load
	batches.Callers = 16
	single.Events, single.Callers = 1, 1000
	streams.Events, streams.Callers, streams.Transport = 1, 1, overStream
	web.Events, web.Callers, web.Connections, web.Transport = 1, 100, 100, overHTTP
	return map[string]Load{
		"bare gRPC echo, batches": batches, "bare gRPC echo, single events": single,
		"bare gRPC echo, 8 streams": streams, "bare HTTP handler": web,
	}
}

func (s *System) limitOfEcho(ctx context.Context, load Load) error {
	if s.dir == "" {
		return nil
	}
	return s.withEcho(ctx, func(e *echoProcess) error {
		loads := echoLoads(load)
		for _, name := range sortedKeys(loads) {
			rate, err := e.rate(ctx, loads[name])
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			s.bench.figure(Absolute, name, rate, "events/s")
		}
		return nil
	})
}

func (s *System) withEcho(ctx context.Context, f func(*echoProcess) error) error {
	e, err := startEcho(ctx, s)
	if err != nil {
		return err
	}
	return errors.Join(f(e), e.process.Stop())
}

// limitOfDisk writes and syncs one page after another where the system's data are.
func (s *System) limitOfDisk(length time.Duration) (err error) {
	if s.dir == "" {
		return nil
	}
	file, err := os.CreateTemp(s.dir, "fsync-")
	if err != nil {
		return fmt.Errorf("limit of the disk: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close(), os.Remove(file.Name())) }()
	h, page := newHistogram(), make([]byte, fsyncBytes)
	syncs, began := 0, time.Now()
	for ; time.Since(began) < length; syncs++ {
		if _, err := file.Write(page); err != nil {
			return fmt.Errorf("limit of the disk: %w", err)
		}
		before := time.Now()
		if err := file.Sync(); err != nil {
			return fmt.Errorf("limit of the disk: %w", err)
		}
		recordInto(h, time.Since(before))
	}
	s.bench.figure(Absolute, "sequential fsync of 8 KiB", float64(syncs)/time.Since(began).Seconds(), "syncs/s")
	s.quantiles("fsync", h)
	return nil
}
