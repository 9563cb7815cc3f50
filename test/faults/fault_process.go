package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"
)

// kill ends a part at once.
type kill struct {
	s  *system
	on string
}

func (f *kill) inject(ctx context.Context) error {
	if err := f.s.awaitStart(ctx, f.on); err != nil { // after an earlier one
		return err
	}
	f.s.watch.dies(f.on)
	return f.s.signal(f.on, endSignal(f.on))
}

func (f *kill) heal(ctx context.Context) error { return f.s.awaitStart(ctx, f.on) }

// pause stops a process for a while; it does not know of it.
type pause struct {
	s   *system
	on  string
	pid int
}

func (f *pause) inject(context.Context) error {
	f.s.watch.lapses(f.on)
	f.pid = f.s.pid(f.on)
	return f.s.signal(f.on, syscall.SIGSTOP)
}

func (f *pause) heal(context.Context) error {
	if err := syscall.Kill(f.pid, syscall.SIGCONT); err != nil {
		return fmt.Errorf("continue %s: %w", f.on, err)
	}
	return nil
}

// terminate asks a process to end, and times it.
type terminate struct {
	s  *system
	on string
}

func (f *terminate) inject(ctx context.Context) error {
	// One that an earlier fault is still stopping ends at once on a second signal, and one that
	// has just been started does not listen to signals yet.
	if err := f.s.awaitStart(ctx, f.on); err != nil {
		return err
	}
	if err := f.s.awaitAnswer(ctx, f.on, "/livez"); err != nil {
		return err
	}
	f.s.watch.stops(f.on)
	return f.s.signal(f.on, syscall.SIGTERM)
}

func (f *terminate) heal(ctx context.Context) error { return f.s.awaitStart(ctx, f.on) }

// together is one fault and then another.
type together struct{ first, then fault }

func (f *together) inject(ctx context.Context) error {
	if err := f.first.inject(ctx); err != nil {
		return err
	}
	sleep(ctx, 500*time.Millisecond)
	return f.then.inject(ctx)
}

// heal mends the second one first: it is to end while the first is in force.
func (f *together) heal(ctx context.Context) error {
	err := f.then.heal(ctx)
	if first := f.first.heal(context.WithoutCancel(ctx)); err == nil {
		err = first
	}
	return err
}

// proof and testify are the second one's.
func (f *together) proof() (int, string) {
	if then, ok := f.then.(proven); ok {
		return then.proof()
	}
	return 0, ""
}

func (f *together) testify(e *evidence) {
	if then, ok := f.then.(witness); ok {
		then.testify(e)
	}
}

// rolling restarts every process, each once the one before it is ready again.
type rolling struct{ s *system }

func (f *rolling) inject(ctx context.Context) error {
	for _, name := range processes {
		one := &terminate{f.s, name}
		if err := one.inject(ctx); err != nil {
			return err
		}
		if err := one.heal(ctx); err != nil {
			return err
		}
		if err := f.s.awaitReady(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

func (f *rolling) heal(context.Context) error { return nil }

// pauseAll stops several processes for a while.
type pauseAll struct {
	s      *system
	names  []string
	paused []*pause
}

func (f *pauseAll) inject(ctx context.Context) error {
	for _, name := range f.names {
		one := &pause{s: f.s, on: name}
		if err := one.inject(ctx); err != nil {
			return err
		}
		f.paused = append(f.paused, one)
	}
	return nil
}

func (f *pauseAll) heal(ctx context.Context) error {
	var errs []error
	for _, one := range f.paused {
		errs = append(errs, one.heal(ctx))
	}
	return errors.Join(errs...)
}
