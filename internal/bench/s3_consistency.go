package bench

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// consistencyRounds bounds how often writes are looked for.
const consistencyRounds = 500

// measureConsistency looks for what was just written through another client, once: read, listed
// behind the object before it, and read again after it was overwritten.
func (k *s3Kit) measureConsistency(ctx context.Context) error {
	other, _, err := k.newClient(ctx)
	if err != nil {
		return err
	}
	get, list := newHistogram(), newHistogram()
	read, listed, overwritten := k.seen("read after write"), k.seen("list after write"), k.seen("read after overwrite")
	before := ""
	for round, began := 0, time.Now(); round == 0 || round < consistencyRounds && time.Since(began) < k.plan.cell; round++ {
		key := fmt.Sprintf("consistency/%020d", round)
		for attempt, check := range []*Verdict{read, overwritten} {
			want := fmt.Sprintf("round %d, attempt %d", round, attempt)
			if err := k.put(ctx, k.client, key, []byte(want)); err != nil {
				return fmt.Errorf("write: %w", err)
			}
			at := time.Now()
			ok, err := k.reads(ctx, other, key, want)
			if err != nil {
				return fmt.Errorf("read after write: %w", err)
			}
			recordInto(get, time.Since(at))
			note(check, ok, key)
		}
		at := time.Now()
		keys, _, err := k.list(ctx, other, "consistency/", before)
		if err != nil {
			return fmt.Errorf("list after write: %w", err)
		}
		recordInto(list, time.Since(at))
		note(listed, slices.Equal(keys, []string{key}), key)
		before = key
	}
	for _, v := range []*Verdict{read, listed, overwritten} {
		k.bench.report.Correctness = append(k.bench.report.Correctness, *v)
		k.bench.config.Say("correctness: " + v.String())
		k.bench.figure(Shape, v.Sink+": not seen at the first look", float64(v.Lost), fmt.Sprintf("of %d", v.Accepted))
	}
	k.quantiles("GET of what was just written", quantilesOf(get))
	k.quantiles("LIST of what was just written (StartAfter)", quantilesOf(list))
	return nil
}

func (k *s3Kit) quantiles(name string, q Quantiles) {
	k.bench.figure(Absolute, name+", p50", q.P50, "ms")
	k.bench.figure(Absolute, name+", p99", q.P99, "ms")
}

// seen is the verdict of something that is looked for.
func (k *s3Kit) seen(what string) *Verdict { return &Verdict{System: "s3", Sink: what} }

func note(v *Verdict, ok bool, key string) {
	v.Accepted++
	if ok {
		v.Delivered++
		return
	}
	v.Lost++
	if len(v.Examples) < maxFaults {
		v.Examples = append(v.Examples, v.Sink+": "+key)
	}
}

// reads reports whether an object is there with this content.
func (k *s3Kit) reads(ctx context.Context, client *s3.Client, key, want string) (bool, error) {
	body, err := k.get(ctx, client, key)
	if errorCode(err) == "NoSuchKey" {
		return false, nil
	}
	return string(body) == want, err
}
