package bench

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// readWriters fill folders, and fanOut objects are read at once.
	readWriters, fanOut = 32, 32
	// readObjectBytes is what an object that is read has.
	readObjectBytes = 1 << 10
	// sinceShare of a folder is behind the key that a listing starts after.
	sinceShare = 0.1
	// readRepeats bounds how often something is measured; the median counts.
	readRepeats = 5
)

// measureReads lists folders of growing size, from the start and from near the end, and reads
// every object.
func (k *s3Kit) measureReads(ctx context.Context) error {
	prices := k.bench.config.S3Prices
	chart := Series{Title: "Finding and reading N objects", X: "objects", Y: "ms", Kind: Absolute, LogY: true}
	body := make([]byte, readObjectBytes)
	for i, count := range k.plan.counts {
		folder := fmt.Sprintf("read/%d/", count)
		key := func(n int64) string { return fmt.Sprintf("%s%020d", folder, n) }
		k.bench.live(fmt.Sprintf("writing %d objects to read", count))
		// Without a limit of time: it is the number that is measured by.
		run := putMany(readWriters, int64(count), s3CleanupLimit, func(n int64) error { return k.put(ctx, k.client, key(n), body) })
		if err := k.noteFailed(ctx, folder, run); err != nil {
			return err
		}
		if run.done != int64(count) {
			return fmt.Errorf("%d of %d objects to read were written", run.done, count)
		}
		name := fmt.Sprintf("%d objects", count)
		k.bench.live(name + ": listing and reading")
		since := int64(float64(count) * (1 - sinceShare))
		requests := 0
		all, err := k.repeat(ctx, func() (err error) {
			requests, err = k.wantListed(ctx, folder, "", count)
			return err
		})
		if err != nil {
			return fmt.Errorf("list %s: %w", name, err)
		}
		newest, err := k.repeat(ctx, func() error {
			_, err := k.wantListed(ctx, folder, key(since-1), count-int(since))
			return err
		})
		if err != nil {
			return fmt.Errorf("list the newest of %s: %w", name, err)
		}
		read, err := k.repeat(ctx, func() error { return k.fanOut(ctx, count, key) })
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		k.bench.figure(Absolute, name+": LIST of all", all, "ms")
		k.bench.figure(Shape, name+": LIST of all", float64(requests), "requests")
		k.bench.figure(Absolute, fmt.Sprintf("%s: LIST of the newest %d (StartAfter)", name, count-int(since)), newest, "ms")
		k.bench.figure(Absolute, fmt.Sprintf("%s: GET of all, %d at once", name, fanOut), read, "ms")
		k.bench.figure(Absolute, name+": GET rate", float64(count)/read*1000, "GET/s")
		k.bench.figure(Shape, name+": LIST and GET of all", float64(requests)/1000*prices.Puts+float64(count)/1000*prices.Gets, "US dollars")
		chart.Names = append(chart.Names, fmt.Sprint(count))
		chart.add("LIST of all", float64(i), all)
		chart.add("LIST of the newest tenth", float64(i), newest)
		chart.add(fmt.Sprintf("GET of all, %d at once", fanOut), float64(i), read)
	}
	k.bench.series(chart)
	return nil
}

// repeat measures something a few times, as long as the time allows, and returns the median in
// milliseconds.
func (k *s3Kit) repeat(ctx context.Context, what func() error) (float64, error) {
	var took []float64
	for began := time.Now(); len(took) == 0 || len(took) < readRepeats && time.Since(began) < k.plan.cell; {
		before := time.Now()
		if err := what(); err != nil {
			return 0, err
		}
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		took = append(took, float64(time.Since(before))/float64(time.Millisecond))
	}
	return median(took), nil
}

// wantListed fails unless a listing shows so many objects, and returns the requests it took.
func (k *s3Kit) wantListed(ctx context.Context, folder, after string, want int) (requests int, err error) {
	keys, requests, err := k.list(ctx, k.client, folder, after)
	if err == nil && len(keys) != want {
		err = fmt.Errorf("it shows %d objects behind %q; there are %d", len(keys), after, want)
	}
	return requests, err
}

func (k *s3Kit) fanOut(ctx context.Context, count int, key func(n int64) string) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(fanOut)
	for n := range int64(count) {
		group.Go(func() error {
			body, err := k.get(ctx, k.client, key(n))
			if err == nil && len(body) != readObjectBytes {
				err = fmt.Errorf("%s has %d bytes; want %d", key(n), len(body), readObjectBytes)
			}
			return err
		})
	}
	return group.Wait()
}
