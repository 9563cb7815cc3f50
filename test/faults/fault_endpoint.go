package main

import (
	"context"
	"sync"
	"time"
)

// misbehave tells the endpoint how to behave.
type misbehave struct {
	s         *system
	behaviour string
}

func (f *misbehave) inject(ctx context.Context) error { return f.s.behave(ctx, f.behaviour) }

func (f *misbehave) heal(ctx context.Context) error { return f.s.behave(ctx, `{}`) }

// flap lets something come and go.
type flap struct {
	set    func(ctx context.Context, down bool) error
	cancel context.CancelFunc
	done   sync.WaitGroup
	err    error // of the goroutine
}

// flapEvery is about as long as a lane's first tries.
const flapEvery = 400 * time.Millisecond

func (f *flap) inject(ctx context.Context) error {
	ctx, f.cancel = context.WithCancel(ctx)
	f.done.Go(func() {
		for down := true; ctx.Err() == nil && f.err == nil; down = !down {
			if err := f.set(ctx, down); ctx.Err() == nil {
				f.err = err
			}
			sleep(ctx, flapEvery)
		}
	})
	return nil
}

func (f *flap) heal(ctx context.Context) error {
	f.cancel()
	f.done.Wait()
	if f.err != nil {
		return f.err
	}
	return f.set(ctx, false)
}

// flapEndpoint lets the endpoint come and go.
func flapEndpoint(s *system) *flap {
	return &flap{set: func(ctx context.Context, down bool) error {
		if down {
			return s.behave(ctx, `{"down":true}`)
		}
		return s.behave(ctx, `{}`)
	}}
}
