package bench

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// s3Cell is how long each thing is measured, unless --for says otherwise.
	s3Cell = 2 * time.Second
	// s3Length is after how long no further part is begun.
	s3Length = 100 * time.Second
)

// s3Plan says how much is measured.
type s3Plan struct {
	cell           time.Duration // of each thing
	sizes, writers []int         // bytes of PUTs, and how many write at once
	objectEvents   []int         // events of an object, from none buffered to many
	counts         []int         // objects that are listed and read
}

func defaultS3Plan() s3Plan {
	return s3Plan{
		cell:  s3Cell,
		sizes: []int{1 << 10, 4 << 10, 16 << 10, 64 << 10}, writers: []int{1, 8, 32},
		objectEvents: []int{1, 10, 20, 50, 500},
		counts:       []int{10, 100, 1000, 5000},
	}
}

// runS3 measures what the archive is built on, by itself.
func runS3(ctx context.Context, b *Bench) error {
	set := b.config.Settings
	plan := defaultS3Plan()
	if set.For != nil {
		plan.cell = *set.For
	}
	return b.measureS3(ctx, plan)
}

func (b *Bench) measureS3(ctx context.Context, plan s3Plan) (err error) {
	k, err := openS3(ctx, b, plan)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.close(ctx)) }()
	b.report.Versions["s3"] = k.where()
	began := time.Now()
	for _, part := range []struct {
		name    string
		measure func(context.Context) error
	}{
		{"consistency", k.measureConsistency},
		{"redelivery", k.measureRedelivery},
		{"PUTs", k.measurePuts},
		{"events of an object", k.measureBatches},
		{"LISTs and GETs", k.measureReads},
	} {
		if time.Since(began) > s3Length {
			b.missing(fmt.Sprintf("%s: the parts before took more than %v", part.name, s3Length))
			continue
		}
		if err := part.measure(ctx); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	answers := k.meter.answers.Load()
	b.figure(Shape, "share of answers that ask to slow down (429, 503)", float64(k.meter.slowDowns.Load())/float64(max(answers, 1)), fmt.Sprintf("of %d", answers))
	return nil
}
