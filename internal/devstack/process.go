package devstack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// readyPoll is the pause between two looks at whether a process is ready.
	readyPoll = 25 * time.Millisecond
	// logTailBytes is how much of a process's log an error quotes.
	logTailBytes = 2048
)

// Command says how to start a process and how to end it. Take one from DefaultCommand.
type Command struct {
	// Name stands for the process in errors.
	Name string
	// Path is the program, Args what follows it on the command line.
	Path string
	Args []string
	// Env is the environment as KEY=value; nil: this process's.
	Env []string
	// Dir is the working directory; empty: this process's.
	Dir string
	// LogPath is the file that standard output and error are appended to; empty: they
	// are discarded.
	LogPath string
	// Credential is the user to run as; nil: this process's.
	Credential *syscall.Credential
	// Ready is asked again and again, until it returns nil, whether the process can be
	// used; nil: as soon as it runs.
	Ready func(ctx context.Context) error
	// ReadyTimeout bounds the wait for Ready.
	ReadyTimeout time.Duration
	// StopSignal asks for a graceful end; SIGKILL follows after StopTimeout.
	StopSignal  syscall.Signal
	StopTimeout time.Duration
	// DeathSignal reaches the process when this one ends without having stopped it
	// (Linux only).
	DeathSignal syscall.Signal
}

// DefaultCommand is a process that inherits the environment, is ready at once, may take
// ten seconds to obey a SIGTERM and is killed when its parent dies.
func DefaultCommand(name, path string, args ...string) Command {
	return Command{
		Name: name, Path: path, Args: args,
		ReadyTimeout: 30 * time.Second,
		StopSignal:   syscall.SIGTERM, StopTimeout: 10 * time.Second,
		DeathSignal: syscall.SIGKILL,
	}
}

// Validate names the first field that cannot work.
func (c Command) Validate() error {
	switch {
	case c.Name == "":
		return errors.New("Command.Name is empty: give the process a name for errors")
	case c.Path == "":
		return fmt.Errorf("%s: Command.Path is empty: name the program", c.Name)
	case c.Ready != nil && c.ReadyTimeout <= 0:
		return fmt.Errorf("%s: Command.ReadyTimeout is %s: want more than 0 (see DefaultCommand)", c.Name, c.ReadyTimeout)
	case c.StopSignal == 0:
		return fmt.Errorf("%s: Command.StopSignal is 0: name a signal (see DefaultCommand)", c.Name)
	case c.StopTimeout <= 0:
		return fmt.Errorf("%s: Command.StopTimeout is %s: want more than 0 (see DefaultCommand)", c.Name, c.StopTimeout)
	}
	return nil
}

// Process is a running program that ends with this process.
type Process struct {
	command Command
	logFrom int64 // size of the log before this start, bytes
	cmd     *exec.Cmd
	done    chan struct{} // closed once the process was waited for
	exit    error         // how it ended; readable once done is closed

	mu    sync.Mutex
	ended bool // Stop or Kill9 asked for the end, so it is no failure
}

// StartProcess starts a program and waits until it is ready. ctx bounds the start and
// not the process's life, which Stop or Kill9 ends. A program that does not become ready
// is killed, and the error quotes the end of its log.
func StartProcess(ctx context.Context, command Command) (*Process, error) {
	if err := command.Validate(); err != nil {
		return nil, err
	}
	p := &Process{command: command, done: make(chan struct{})}
	log, err := p.openLog()
	if err != nil {
		return nil, fmt.Errorf("%s: open its log: %w", command.Name, err)
	}
	p.cmd = command.build(log)
	started := make(chan error)
	go p.own(started)
	err = <-started
	_ = log.Close() // the process has its own copy
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", command.Name, err)
	}
	if err := p.waitReady(ctx); err != nil {
		_ = p.Kill9() // it is the start that failed, and that error is told
		return nil, fmt.Errorf("start %s: %w%s", command.Name, err, p.quoteLog())
	}
	return p, nil
}

func (c Command) build(log *os.File) *exec.Cmd {
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Env, cmd.Dir = c.Env, c.Dir
	cmd.Stdout, cmd.Stderr = log, log
	// A group of its own: a Ctrl-C at the terminal is meant for this process, which
	// then stops its children in an order of its choice.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: c.Credential}
	setDeathSignal(cmd.SysProcAttr, c.DeathSignal)
	return cmd
}

func (p *Process) openLog() (*os.File, error) {
	path := p.command.LogPath
	if path == "" {
		return os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	info, err := log.Stat()
	if err != nil {
		_ = log.Close() // nothing was written
		return nil, err
	}
	p.logFrom = info.Size()
	return log, nil
}

// own starts the process and waits for its end. Linux sends the death signal when the
// thread that forked the child ends, not the process, so this goroutine keeps its thread
// until the child is gone.
func (p *Process) own(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := p.cmd.Start(); err != nil {
		started <- err
		return
	}
	started <- nil
	p.exit = p.cmd.Wait()
	close(p.done)
}

func (p *Process) waitReady(ctx context.Context) error {
	if p.command.Ready == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, p.command.ReadyTimeout)
	defer cancel()
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		notReady := p.command.Ready(ctx)
		if notReady == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("it ended before it was ready: %w", p.Err())
		case <-ctx.Done():
			return fmt.Errorf("not ready in time: %w", notReady)
		case <-tick.C:
		}
	}
}

// PID is the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended, whatever ended it.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err waits for the end of the process and says how it ended; it is never nil.
func (p *Process) Err() error {
	<-p.done
	if p.exit == nil {
		return errors.New("exit status 0")
	}
	return p.exit
}

// Signal sends a signal; os.ErrProcessDone when the process has ended.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// Stop asks the process to end, waits, and kills it when it does not obey within
// StopTimeout. The error says that it had to be killed, that it ended badly or that it
// had ended by itself before. A further call returns nil.
func (p *Process) Stop() error {
	if !p.claimEnd() {
		<-p.done
		return nil
	}
	select {
	case <-p.done:
		return fmt.Errorf("%s had ended by itself: %w%s", p.command.Name, p.Err(), p.quoteLog())
	default:
	}
	_ = p.Signal(p.command.StopSignal) // fails only when it has just ended
	timeout := time.NewTimer(p.command.StopTimeout)
	defer timeout.Stop()
	select {
	case <-p.done:
		return p.endError()
	case <-timeout.C:
		_ = p.Signal(syscall.SIGKILL) // as above
		<-p.done
		return fmt.Errorf("stop %s: not within %s, so it was killed%s", p.command.Name, p.command.StopTimeout, p.quoteLog())
	}
}

// endError is nil after an exit with status 0 or by the very signal that Stop sent.
func (p *Process) endError() error {
	var exit *exec.ExitError
	if errors.As(p.exit, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == p.command.StopSignal {
			return nil
		}
	}
	if p.exit != nil {
		return fmt.Errorf("stop %s: %w%s", p.command.Name, p.exit, p.quoteLog())
	}
	return nil
}

// Kill9 ends the process with SIGKILL and waits for its end. It is no error when it had
// ended already.
func (p *Process) Kill9() error {
	p.claimEnd()
	if err := p.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s: %w", p.command.Name, err)
	}
	<-p.done
	return nil
}

// claimEnd reports whether the caller is the first to ask for the end.
func (p *Process) claimEnd() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	first := !p.ended
	p.ended = true
	return first
}

// quoteLog returns the end of what this start wrote, ready to be added to an error.
func (p *Process) quoteLog() string {
	text := p.logTail()
	if text == "" {
		return ""
	}
	return fmt.Sprintf("; the end of %s:\n%s", p.command.LogPath, text)
}

func (p *Process) logTail() string {
	data, err := os.ReadFile(p.command.LogPath)
	if err != nil || int64(len(data)) <= p.logFrom {
		return ""
	}
	data = data[p.logFrom:]
	return strings.TrimSpace(string(data[max(0, len(data)-logTailBytes):]))
}
