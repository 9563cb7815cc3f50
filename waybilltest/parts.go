package waybilltest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"

	"github.com/waybillhq/waybill/pipeline"
)

// parts are what runs in goroutines of its own.
type parts struct {
	failed chan struct{} // closed when one ends that was not asked to

	mu    sync.Mutex // guards what follows
	errs  []error
	asked []asked
}

// asked is a process that has begun, and how to ask it for its health.
type asked struct {
	name      string
	readiness func() pipeline.Readiness
}

func newParts() *parts { return &parts{failed: make(chan struct{})} }

// run starts a part, and returns what stops it and waits for its end.
func (p *parts) run(name string, run func(context.Context) error) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		err := run(ctx)
		if ctx.Err() == nil {
			if err == nil {
				err = errors.New("without an error")
			}
			p.fail(fmt.Errorf("%s ended by itself: %w", name, err))
			err = nil // it is told once
		}
		ended <- err
	}()
	return func() error {
		cancel()
		if err := <-ended; err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	}
}

func (p *parts) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.errs = append(p.errs, err); len(p.errs) == 1 {
		close(p.failed)
	}
}

// err is why parts have ended that were not asked to.
func (p *parts) err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return errors.Join(p.errs...)
}

// add notes how to ask a process for its health.
func (p *parts) add(name string, readiness func() pipeline.Readiness) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, asked{name, readiness})
}

// problems are what the processes say is wrong; only what keeps them from their work, if unready is set.
func (p *parts) problems(unready bool) []string {
	p.mu.Lock()
	all := slices.Clone(p.asked)
	p.mu.Unlock()
	var out []string
	for _, a := range all {
		r := a.readiness()
		found := r.Problems
		if !unready {
			found = slices.Concat(r.Problems, r.Degraded)
		}
		for _, problem := range found {
			out = append(out, fmt.Sprintf("%s: %s: %s", a.name, problem.Check, problem.Problem))
		}
	}
	return out
}

// testOutput is the output of a test, until that ends: who writes to it later panics.
type testOutput struct {
	mu sync.Mutex // guards w
	w  io.Writer  // nil once the test is over
}

// Write implements io.Writer.
func (o *testOutput) Write(line []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.w == nil {
		return len(line), nil
	}
	return o.w.Write(line)
}

func (o *testOutput) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.w = nil
}

// logger writes warnings and errors.
func (o *testOutput) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(o, &slog.HandlerOptions{Level: slog.LevelWarn}))
}
