// Package supervisor keeps the parts of a system on this machine running: a part that ends
// without having been asked to is started again, after a pause.
package supervisor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Part is something that runs, may end, and can be started again. Its methods are called by
// one goroutine at a time.
type Part interface {
	// Start starts it, waits until it can be used and returns its process id.
	Start(ctx context.Context) (pid int, err error)
	// Done is closed when what the newest successful Start started has ended.
	Done() <-chan struct{}
	// Why says how it ended; called after Done was closed.
	Why() string
	// Stop asks it to end and waits for that. It is not called for what has ended.
	Stop() error
}

// Pauses before a part is started again: the first is short enough to watch, and a part
// that fails at once must not be a busy loop. MaxPause is what New is mostly given.
const (
	minPause = 500 * time.Millisecond
	MaxPause = 5 * time.Second
	// steadyAfter is how long a part must have run for its next end to be a first one.
	steadyAfter = 10 * time.Second
)

// Supervisor keeps one part running.
type Supervisor struct {
	name string
	part Part
	most time.Duration // pause before a start
	say  func(string)
	pid  atomic.Int64 // of the newest successful start; 0: none

	mu   sync.Mutex    // guards held
	held chan struct{} // closed by Release; nil: not held
}

// New returns a supervisor of a part. The pause before it is started again doubles from start
// to start, up to most. say receives a line whenever the part ended or was started again.
func New(name string, part Part, most time.Duration, say func(string)) *Supervisor {
	return &Supervisor{name: name, part: part, most: most, say: say}
}

// Name is the part's.
func (s *Supervisor) Name() string { return s.name }

// Start starts the part for the first time.
func (s *Supervisor) Start(ctx context.Context) error {
	pid, err := s.part.Start(ctx)
	if err != nil {
		return err
	}
	s.pid.Store(int64(pid))
	return nil
}

// PID is the process id of the newest start.
func (s *Supervisor) PID() int { return int(s.pid.Load()) }

// Hold keeps the part from being started again once it has ended, until Release.
func (s *Supervisor) Hold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held == nil {
		s.held = make(chan struct{})
	}
}

// Release ends a Hold.
func (s *Supervisor) Release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held != nil {
		close(s.held)
		s.held = nil
	}
}

// awaitRelease returns when the part may be started.
func (s *Supervisor) awaitRelease(ctx context.Context) {
	s.mu.Lock()
	held := s.held
	s.mu.Unlock()
	if held == nil {
		return
	}
	select {
	case <-held:
	case <-ctx.Done():
	}
}

// Run starts the part again whenever it ends, until ctx does. It returns with the part
// running or not; Stop ends it.
func (s *Supervisor) Run(ctx context.Context) {
	pause, since := min(minPause, s.most), time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.part.Done():
		}
		if ctx.Err() != nil {
			return
		}
		if time.Since(since) > steadyAfter {
			pause = min(minPause, s.most)
		}
		s.say(fmt.Sprintf("%s ended: %s; it is started again in %v", s.name, s.part.Why(), pause))
		for again := false; !again; {
			sleep(ctx, pause)
			s.awaitRelease(ctx)
			pause = min(2*pause, s.most)
			again = s.restart(ctx, pause)
			if ctx.Err() != nil {
				return
			}
		}
		since = time.Now()
	}
}

// restart reports whether the part runs again. If not, it is tried again after pause; it has ended
// once, however often that takes.
func (s *Supervisor) restart(ctx context.Context, pause time.Duration) bool {
	if ctx.Err() != nil {
		return false
	}
	err := s.Start(ctx)
	switch {
	case err == nil:
		s.say(fmt.Sprintf("%s runs again, as process %d", s.name, s.PID()))
	case ctx.Err() == nil:
		s.say(fmt.Sprintf("%s does not start: %s; it is tried again in %v", s.name, firstLine(err), pause))
	}
	return err == nil
}

// Stop ends the part, unless it has ended by itself. Call it once Run has returned.
func (s *Supervisor) Stop() error {
	if s.pid.Load() == 0 {
		return nil
	}
	select {
	case <-s.part.Done():
		return nil
	default:
	}
	if err := s.part.Stop(); err != nil {
		return fmt.Errorf("stop %s: %w", s.name, err)
	}
	return nil
}

// StopAll stops supervisors at once and returns when all have ended.
func StopAll(all []*Supervisor) error {
	errs := make([]error, len(all))
	done := make(chan struct{})
	for i, s := range all {
		go func() {
			errs[i] = s.Stop()
			done <- struct{}{}
		}()
	}
	for range all {
		<-done
	}
	return errors.Join(errs...)
}

// firstLine leaves out the quoted end of a log.
func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
