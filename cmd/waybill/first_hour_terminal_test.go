package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// terminal is a shell that commands are typed into one after another, as a person does: what one of
// them sets is there for the next.
type terminal struct {
	in    io.Writer
	lines chan string
	err   *program // only what it is written is used
}

// typed ends what a command prints, with its status.
const typed = "--- the command has ended with status "

func openTerminal(t *testing.T, dir string, env []string) *terminal {
	t.Helper()
	cmd := exec.Command("bash", "--norc", "--noprofile")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	term := &terminal{lines: make(chan string), err: &program{}}
	cmd.Stderr = term.err
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	term.in = in
	closed := make(chan struct{})
	go func() {
		defer close(term.lines)
		for lines := bufio.NewReader(out); ; {
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			select {
			case term.lines <- line:
			case <-closed:
				return
			}
		}
	}()
	t.Cleanup(func() {
		close(closed)
		_ = in.Close()         // it ends the shell,
		_ = cmd.Process.Kill() // or this does
		_ = cmd.Wait()         // the status is that of the last command
	})
	return term
}

// run types a command and returns what it prints on standard output, its lines whole, and its status.
func (term *terminal) run(t *testing.T, command string) (out string, status int) {
	t.Helper()
	// The braces keep the command in this shell, and the shell's own input from it.
	if _, err := fmt.Fprintf(term.in, "{ %s\n} </dev/null\nprintf '\\n%s%%d\\n' $?\n", command, typed); err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	var text bytes.Buffer
	late := time.After(programLimit)
	for {
		select {
		case line, open := <-term.lines:
			if !open {
				t.Fatalf("the shell ended at %s:\n%s%s", command, text.String(), term.err.text())
			}
			code, ended := strings.CutPrefix(line, typed)
			if !ended {
				text.WriteString(line)
				continue
			}
			status, err := strconv.Atoi(strings.TrimSpace(code))
			if err != nil {
				t.Fatalf("%s: %v", command, err)
			}
			if out = strings.TrimSuffix(text.String(), "\n"); out != "" && !strings.HasSuffix(out, "\n") {
				out += "\n"
			}
			return out, status
		case <-late:
			t.Fatalf("%s does not end:\n%s%s", command, text.String(), term.err.text())
		}
	}
}

func TestTerminal(t *testing.T) {
	term := openTerminal(t, t.TempDir(), []string{"WAYBILL_TEST=yes"})
	for _, c := range []struct {
		command, out string
		status       int
	}{
		{"here=1; echo $WAYBILL_TEST", "yes\n", 0},
		{"printf unended; exit_status() { return 3; }", "unended\n", 0},
		{"cat; echo $here; exit_status", "1\n", 3},
		{"echo; echo; false", "\n\n", 1},
		{"true # the end", "", 0},
	} {
		if out, status := term.run(t, c.command); out != c.out || status != c.status {
			t.Errorf("%s: %q and status %d, want %q and %d", c.command, out, status, c.out, c.status)
		}
	}
}
