package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// s3CellObjects bounds what one cell writes, so that a fast server does not make a run expensive
// or its removal long.
const s3CellObjects = 1500

// putRun is what became of some PUTs.
type putRun struct {
	done, failed int64
	took         time.Duration
	err          error // one of those that failed
	latency      *hdrhistogram.Histogram
}

func (p putRun) rate() float64 { return float64(p.done) / p.took.Seconds() }

// measurePuts writes objects of each size with each number of writers at once.
func (k *s3Kit) measurePuts(ctx context.Context) error {
	rates := Series{Title: "PUTs by size and writers", X: "bytes", Y: "PUT/s", Kind: Absolute}
	medians := Series{Title: "PUT latency by size and writers, p50", X: "bytes", Y: "ms", Kind: Absolute, LogY: true}
	noise := noiseOf(rand.New(rand.NewPCG(1, 2)), slices.Max(k.plan.sizes))
	for _, size := range k.plan.sizes {
		rates.Names = append(rates.Names, fmt.Sprintf("%d KiB", size>>10))
	}
	medians.Names = rates.Names
	for _, writers := range k.plan.writers {
		for i, size := range k.plan.sizes {
			name := fmt.Sprintf("PUT of %d KiB, %d writers", size>>10, writers)
			k.bench.live(name)
			folder := fmt.Sprintf("put/%d-%d/", size, writers)
			run := putMany(writers, s3CellObjects, k.plan.cell, func(n int64) error {
				return k.put(ctx, k.client, fmt.Sprintf("%s%020d", folder, n), noise[:size])
			})
			if err := k.noteFailed(ctx, name, run); err != nil {
				return err
			}
			q := quantilesOf(run.latency)
			k.bench.figure(Absolute, name, run.rate(), "PUT/s")
			k.bench.figure(Absolute, name+", p50", q.P50, "ms")
			k.bench.figure(Absolute, name+", p99", q.P99, "ms")
			line := fmt.Sprintf("%d writers", writers)
			rates.add(line, float64(i), run.rate())
			medians.add(line, float64(i), max(q.P50, 0.001))
		}
	}
	k.bench.series(rates)
	k.bench.series(medians)
	return nil
}

// putTally counts PUTs that are made at once.
type putTally struct {
	began        time.Time
	done, failed atomic.Int64
	err          atomic.Pointer[error] // the first
	latency      *latencies
}

func newPutTally() *putTally { return &putTally{began: time.Now(), latency: newLatencies()} }

func (t *putTally) count(err error) {
	if err == nil {
		t.done.Add(1)
		return
	}
	t.failed.Add(1)
	t.err.CompareAndSwap(nil, &err)
}

// run is what became of them, once all are answered.
func (t *putTally) run() putRun {
	run := putRun{done: t.done.Load(), failed: t.failed.Load(), took: time.Since(t.began), latency: t.latency.merged()}
	if err := t.err.Load(); err != nil {
		run.err = *err
	}
	return run
}

// putMany lets writers call put with successive numbers until so many are done or the time is up;
// each calls it once at least.
func putMany(writers int, most int64, length time.Duration, put func(n int64) error) putRun {
	t := newPutTally()
	var next atomic.Int64
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for once := false; !once || time.Since(t.began) < length; once = true {
				n := next.Add(1) - 1
				if n >= most {
					return
				}
				before := time.Now()
				err := put(n)
				if t.count(err); err == nil {
					t.latency.record(n, time.Since(before))
				}
			}
		})
	}
	wg.Wait()
	return t.run()
}

// noteFailed tells of requests that failed; it is an error if none succeeded.
func (k *s3Kit) noteFailed(ctx context.Context, name string, run putRun) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case run.done == 0:
		return fmt.Errorf("%s: none of %d requests succeeded: %w", name, run.failed, run.err)
	case run.failed > 0:
		k.bench.warn("%s: %d of %d requests failed: %v", name, run.failed, run.done+run.failed, run.err)
	}
	return nil
}
