package supervisor_test

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/waybillhq/waybill/internal/devstack"
	"github.com/waybillhq/waybill/internal/supervisor"
)

// lines collects what a supervisor says.
type lines struct {
	mu   sync.Mutex
	said []string
}

func (l *lines) say(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.said = append(l.said, text)
}

// await waits until a line contains text.
func (l *lines) await(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		l.mu.Lock()
		found := slices.ContainsFunc(l.said, func(s string) bool { return strings.Contains(s, text) })
		l.mu.Unlock()
		if found {
			return
		}
	}
	t.Fatalf("nobody said %q but %q", text, l.said)
}

// run runs a supervisor until the test or the returned function ends it.
func run(t *testing.T, s *supervisor.Supervisor) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(ctx)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		<-done
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

// mustSleeper is a process that does nothing for long.
func mustSleeper(t *testing.T) devstack.Command {
	t.Helper()
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	command := devstack.DefaultCommand("sleeper", sleep, "1000")
	command.LogPath = filepath.Join(t.TempDir(), "log")
	return command
}

func TestKilledProcessIsStartedAgain(t *testing.T) {
	said := &lines{}
	s := supervisor.New("sleeper", supervisor.NewProcess(mustSleeper(t)), supervisor.MaxPause, said.say)
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	first := s.PID()
	stop := run(t, s)
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	said.await(t, "sleeper ended: signal: killed")
	said.await(t, "sleeper runs again")
	second := s.PID()
	if second == first || !alive(second) {
		t.Errorf("process %d follows process %d", second, first)
	}
	stop()
	if alive(second) {
		t.Error("it runs after Stop")
	}
}

// flaky is a part that ends when told to and does not start for a while.
type flaky struct {
	mu      sync.Mutex
	fail    int
	starts  int
	done    chan struct{}
	stopErr error
}

func (f *flaky) Start(context.Context) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.starts++
	if f.starts > 1 && f.fail > 0 {
		f.fail--
		return 0, errors.New("no luck\nand the end of its log")
	}
	f.done = make(chan struct{})
	return f.starts, nil
}

func (f *flaky) Done() <-chan struct{} { f.mu.Lock(); defer f.mu.Unlock(); return f.done }
func (f *flaky) Why() string           { return "a whim" }
func (f *flaky) Stop() error           { return f.stopErr }
func (f *flaky) end()                  { f.mu.Lock(); defer f.mu.Unlock(); close(f.done) }

func TestStartIsTriedAgain(t *testing.T) {
	said, part := &lines{}, &flaky{fail: 1}
	s := supervisor.New("part", part, supervisor.MaxPause, said.say)
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	run(t, s)
	part.end()
	said.await(t, "part ended: a whim; it is started again in 500ms")
	said.await(t, "part does not start: no luck; it is tried again in 1s")
	said.await(t, "part runs again, as process 3")
	said.mu.Lock()
	defer said.mu.Unlock()
	if len(said.said) != 3 {
		t.Errorf("the part ended once, and said was %q", said.said)
	}
	for _, line := range said.said {
		if strings.Contains(line, "log") {
			t.Errorf("a line quotes a log: %q", line)
		}
	}
}

func TestStop(t *testing.T) {
	broken := errors.New("broken")
	never := supervisor.New("never started", &flaky{stopErr: broken}, supervisor.MaxPause, func(string) {})
	if err := never.Stop(); err != nil {
		t.Error(err)
	}
	ended := &flaky{stopErr: broken}
	running := &flaky{stopErr: broken}
	var all []*supervisor.Supervisor
	for _, part := range []*flaky{ended, running} {
		s := supervisor.New("part", part, supervisor.MaxPause, func(string) {})
		if err := s.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	ended.end()
	if err := all[0].Stop(); err != nil {
		t.Errorf("what has ended is stopped: %v", err)
	}
	if err := supervisor.StopAll(all); !errors.Is(err, broken) {
		t.Error(err)
	}
}

func TestHeldPartIsStartedOnceItIsReleased(t *testing.T) {
	l := new(lines)
	s := supervisor.New("sleeper", supervisor.NewProcess(mustSleeper(t)), supervisor.MaxPause, l.say)
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	run(t, s)
	first := s.PID()
	s.Hold()
	s.Hold() // changes nothing
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	l.await(t, "sleeper ended")
	time.Sleep(time.Second) // above the first pause
	if pid := s.PID(); pid != first {
		t.Fatalf("it runs as %d, although it is held", pid)
	}
	s.Release()
	l.await(t, "sleeper runs again")
}
