package devstack_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/waybillhq/waybill/internal/devstack"
)

// parentEnv makes a test of this binary, run again as a process of its own, the parent
// that is killed.
const parentEnv = "WAYBILL_TEST_PARENT"

func TestStopObeyed(t *testing.T) {
	p := mustStart(t, shell("trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done"))
	if err := p.Stop(); err != nil {
		t.Errorf("Stop: %v", err)
	}
	if err := p.Stop(); err != nil {
		t.Errorf("a second Stop: %v", err)
	}
	if err := p.Kill9(); err != nil {
		t.Errorf("Kill9 after the end: %v", err)
	}
}

func TestStopBySignalIsNoError(t *testing.T) {
	p := mustStart(t, devstack.DefaultCommand("sleeper", "sleep", "600"))
	if err := p.Stop(); err != nil {
		t.Errorf("Stop: %v", err)
	}
}

func TestStopKillsTheDeaf(t *testing.T) {
	c := shell("trap '' TERM; echo deaf; while :; do sleep 0.05; done")
	c.LogPath = filepath.Join(t.TempDir(), "logs", "deaf.log")
	c.Ready, c.StopTimeout = logSays(c.LogPath, "deaf"), 100*time.Millisecond
	err := mustStart(t, c).Stop()
	if err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("Stop says %v, want that it had to kill", err)
	}
}

func TestStopTellsOfAnEarlierEnd(t *testing.T) {
	c := shell("echo cannot go on; exit 3")
	c.LogPath = filepath.Join(t.TempDir(), "short.log")
	p := mustStart(t, c)
	<-p.Done()
	err := p.Stop()
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "cannot go on") {
		t.Errorf("Stop says %v, want the status and the log", err)
	}
}

func TestStartTellsWhyNotReady(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(log, []byte("of an earlier start\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	never := func(context.Context) error { return errors.New("nobody home") }
	for _, test := range []struct {
		script  string
		timeout time.Duration
		want    []string
	}{
		{"echo fuse blown; exit 7", time.Minute, []string{"exit status 7", "fuse blown"}},
		{"echo still trying; exec sleep 600", 3 * time.Second, []string{"nobody home", "still trying"}},
	} {
		c := shell(test.script)
		c.LogPath, c.Ready, c.ReadyTimeout = log, never, test.timeout
		_, err := devstack.StartProcess(t.Context(), c)
		if err == nil {
			t.Fatalf("%s: no error", test.script)
		}
		for _, want := range test.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("error %q, want %q in it", err, want)
			}
		}
		if strings.Contains(err.Error(), "an earlier start") {
			t.Errorf("error %q quotes an earlier start", err)
		}
	}
}

func TestStartNamesWhatIsWrong(t *testing.T) {
	ok := devstack.DefaultCommand("x", "true")
	for want, change := range map[string]func(*devstack.Command){
		"Name":           func(c *devstack.Command) { c.Name = "" },
		"Path":           func(c *devstack.Command) { c.Path = "" },
		"StopSignal":     func(c *devstack.Command) { c.StopSignal = 0 },
		"StopTimeout":    func(c *devstack.Command) { c.StopTimeout = 0 },
		"ReadyTimeout":   func(c *devstack.Command) { c.Ready, c.ReadyTimeout = devstack.TCPReady("127.0.0.1:1"), 0 },
		"/no/such":       func(c *devstack.Command) { c.Path = "/no/such/program" },
		"/proc/self/log": func(c *devstack.Command) { c.LogPath = "/proc/self/log/x" },
	} {
		c := ok
		change(&c)
		if _, err := devstack.StartProcess(t.Context(), c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q in it", err, want)
		}
	}
}

// A child ends with its parent, also when the parent is killed, also when the child was
// started by a goroutine whose thread is long gone.
func TestChildrenDieWithTheirParent(t *testing.T) {
	if os.Getenv(parentEnv) != "" {
		p := mustStart(t, devstack.DefaultCommand("sleeper", "sleep", "600"))
		fmt.Println("child", p.PID())
		<-t.Context().Done()
	}
	parent, lines := runParent(t, "^TestChildrenDieWithTheirParent$", "1")
	pid, err := strconv.Atoi(strings.TrimPrefix(lines("child "), "child "))
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	await(t, "the child's end", func() bool { return !running(pid) })
}

func shell(script string) devstack.Command {
	return devstack.DefaultCommand("script", "sh", "-c", script)
}

// logSays is ready once the log contains the text.
func logSays(path, text string) func(context.Context) error {
	return func(context.Context) error {
		data, err := os.ReadFile(path)
		if err == nil && !strings.Contains(string(data), text) {
			err = fmt.Errorf("%s does not say %q", path, text)
		}
		return err
	}
}

func mustStart(t *testing.T, c devstack.Command) *devstack.Process {
	t.Helper()
	p, err := devstack.StartProcess(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Kill9() })
	return p
}

// runParent runs a test of this binary as a process of its own, with parentEnv set. lines
// returns the next line of its output that starts so.
func runParent(t *testing.T, test, role string) (cmd *exec.Cmd, lines func(prefix string) string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command(self, "-test.run", test)
	cmd.Env = append(os.Environ(), parentEnv+"="+role)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed, and that is its error
	})
	scanner := bufio.NewScanner(out)
	return cmd, func(prefix string) string {
		for scanner.Scan() {
			if strings.HasPrefix(scanner.Text(), prefix) {
				return scanner.Text()
			}
		}
		t.Fatalf("the parent never said %q", prefix)
		return ""
	}
}

// running reports whether the process exists and has not ended.
func running(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
