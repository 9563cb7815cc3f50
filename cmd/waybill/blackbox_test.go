package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/waybillhq/waybill/internal/endpoint"
	"github.com/waybillhq/waybill/internal/pgtest"
	"github.com/waybillhq/waybill/pipeline"
)

// testGrace is short, and half of it enough for a publish on a loaded machine.
const testGrace = 5 * time.Second

// testSpec is the pipeline in the databases of the tests.
var testSpec = pipeline.Spec{Lanes: 4, Sinks: []string{"ingress", "archive"}, Grace: testGrace}

// binaryDir is where the binary is built; TestMain removes it.
var binaryDir string

// binary is built by the first test that needs it.
var binary = sync.OnceValues(func() (string, error) {
	path := filepath.Join(binaryDir, "waybill")
	out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w: %s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "waybill-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binaryDir = dir
	status := pgtest.Run(m, pgtest.Options{Template: func(ctx context.Context, url string) error {
		return pipeline.Migrate(ctx, url, testSpec)
	}})
	_ = os.RemoveAll(dir) // it is below the system's own temporary directory
	os.Exit(status)
}

// waybill runs the binary to its end in a directory of its own and returns its output and
// its status.
func waybill(t *testing.T, dir string, env []string, args ...string) (out string, status int) {
	t.Helper()
	p := start(t, dir, env, args...)
	return p.await(t)
}

// program is a running binary.
type program struct {
	cmd  *exec.Cmd
	done chan struct{}

	mu  sync.Mutex // guards out
	out bytes.Buffer
}

func (p *program) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *program) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// programLimit is far above what any of them takes, on a loaded machine too.
const programLimit = 3 * time.Minute

func start(t *testing.T, dir string, env []string, args ...string) *program {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	return startProgram(t, dir, env, path, args...)
}

// startProgram starts any program; it ends with the test.
func startProgram(t *testing.T, dir string, env []string, path string, args ...string) *program {
	t.Helper()
	p := &program{cmd: exec.Command(path, args...), done: make(chan struct{})}
	p.cmd.Dir, p.cmd.Env = dir, append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = p, p
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // the status is looked at later
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // most have ended
		<-p.done
		if t.Failed() {
			t.Logf("%s %s:\n%s", filepath.Base(path), strings.Join(args, " "), p.text())
		}
	})
	return p
}

func (p *program) await(t *testing.T) (out string, status int) {
	t.Helper()
	select {
	case <-p.done:
		return p.text(), p.cmd.ProcessState.ExitCode()
	case <-time.After(programLimit):
		t.Fatalf("it does not end:\n%s", p.text())
		return "", 0
	}
}

// awaitText waits until the output matches.
func (p *program) awaitText(t *testing.T, pattern string) []string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	for deadline := time.Now().Add(programLimit); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if match := re.FindStringSubmatch(p.text()); match != nil {
			return match
		}
		select {
		case <-p.done:
			t.Fatalf("it ended without saying %s:\n%s", pattern, p.text())
		default:
		}
	}
	t.Fatalf("it does not say %s:\n%s", pattern, p.text())
	return nil
}

func TestDevOnce(t *testing.T) {
	temp := t.TempDir()
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	out, status := waybill(t, here, []string{"TMPDIR=" + temp}, "dev", "--once=300", "--ingests=2", "--forwarders=2", "--janitors=2")
	if status != 0 {
		t.Fatalf("status %d:\n%s", status, out)
	}
	for _, sink := range []string{"ingress", "archive"} {
		if !regexp.MustCompile(sink + `  +300  +300  +0  +0  +0  +0  +0\n`).MatchString(out) {
			t.Errorf("%s is not perfect:\n%s", sink, out)
		}
	}
	if !strings.Contains(out, "pending 0; dead letters 0; ") || !strings.Contains(out, "stopped") {
		t.Error(out)
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("it leaves %v behind, %v", left, err)
	}
}

// An endpoint that refuses some events is noticed: they are missing there, dead letters
// tell why, and the archive has them.
func TestDevOnceFails(t *testing.T) {
	config := endpoint.DefaultConfig()
	config.Behaviour.RefuseType = `type0$`
	config.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	e, err := endpoint.New(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	<-e.Ready()
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	out, status := waybill(t, here, []string{"TMPDIR=" + t.TempDir()}, "dev", "--once=200",
		"--ingress-endpoint="+e.Addr(), "--endpoint-admin=http://"+e.AdminAddr())
	if status != 1 {
		t.Errorf("status %d", status)
	}
	missing := regexp.MustCompile(`ingress  +200  +(\d+)  +(\d+)  +0  +0  +0  +\d+\n`).FindStringSubmatch(out)
	if missing == nil {
		t.Fatal(out)
	}
	refused, err := strconv.Atoi(missing[2])
	if err != nil || refused < 10 || !strings.Contains(out, fmt.Sprintf("dead letters: ingress VALIDATION_FAILED %d;", refused)) {
		t.Errorf("%d refused, %v:\n%s", refused, err, out)
	}
	if !regexp.MustCompile(`archive  +200  +200  +0  +0  +0  +0  +0\n`).MatchString(out) || !strings.Contains(out, "ingress does not have exactly") {
		t.Error(out)
	}
}

// parts returns the process ids that `waybill dev` prints, by name.
func (p *program) parts(t *testing.T) map[string]int {
	t.Helper()
	pids := map[string]int{}
	for _, match := range regexp.MustCompile(`(?m)^  ([a-z0-9-]+) +process (\d+) `).FindAllStringSubmatch(p.text(), -1) {
		pid, err := strconv.Atoi(match[2])
		if err != nil {
			t.Fatal(err)
		}
		pids[match[1]] = pid
	}
	return pids
}

// awaitSettled waits until `waybill status` says that nothing waits for a sink.
func awaitSettled(t *testing.T, dir string) status {
	t.Helper()
	for deadline := time.Now().Add(programLimit); ; time.Sleep(100 * time.Millisecond) {
		out, code := waybill(t, dir, nil, "status", "-o", "json")
		var s status
		err := json.Unmarshal([]byte(out), &s)
		left := int64(0)
		for _, sink := range s.Sinks {
			left += sink.Events
		}
		if err == nil && code == 0 && left == 0 && len(s.Sinks) == 2 {
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("not settled: %v, %s", err, out)
		}
	}
}

// TestDevIsKilledStoppedAndStartedAgain goes through what people do with `waybill dev`.
func TestDevIsKilledStoppedAndStartedAgain(t *testing.T) {
	dir := t.TempDir()
	// From here a missing S3 server can be built as from the checkout.
	if err := os.Symlink(mustAbs(t, "../../go.mod"), filepath.Join(dir, "go.mod")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(mustAbs(t, "../../internal"), filepath.Join(dir, "internal")); err != nil {
		t.Fatal(err)
	}
	env := []string{"WAYBILL_ARCHIVE_LINGER=100ms"}
	dev := start(t, dir, env, "dev", "--ports=free", "--forwarders=2")
	dev.awaitText(t, `Ctrl-C`)
	mustWork(t, dir, "emit", "--count=20", "--type=first")
	before := dev.parts(t)
	for _, name := range []string{"forwarder-1", "nats-server", "postgres", "ingest-1", "janitor-1", "s3"} {
		if err := syscall.Kill(before[name], syscall.SIGKILL); err != nil {
			t.Fatal(name, err)
		}
	}
	for _, name := range []string{"forwarder-1", "nats-server", "postgres", "ingest-1", "janitor-1", "s3"} {
		dev.awaitText(t, name+` runs again, as process (\d+)`)
	}
	mustWork(t, dir, "emit", "--count=20", "--type=second")
	awaitSettled(t, dir)
	busy, code := waybill(t, dir, env, "dev", "--ports=free")
	if code != 1 || !strings.Contains(busy, "in use by process "+strconv.Itoa(dev.cmd.Process.Pid)) {
		t.Errorf("a second one in the same directory: status %d, %s", code, busy)
	}
	if err := dev.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if out, code := dev.await(t); code != 0 || !strings.HasSuffix(out, "stopped\n") {
		t.Errorf("status %d after an interrupt", code)
	}
	if out, code := waybill(t, dir, nil, "status"); code != 80 || !strings.Contains(out, "--database-url") {
		t.Errorf("status %d without a system: %s", code, out)
	}

	again := start(t, dir, env, "dev", "--ports=free")
	again.awaitText(t, `Ctrl-C`)
	if ports := regexp.MustCompile(`ingest-1 .*`); !strings.HasSuffix(ports.FindString(again.text()), strings.SplitN(ports.FindString(dev.text()), "http", 2)[1]) {
		t.Errorf("other addresses: %s", ports.FindString(again.text()))
	}
	mustWork(t, dir, "emit", "--count=20", "--type=third")
	var s status
	eventually(t, programLimit, "all is alive and holds its lanes", func() bool { // the events settle with fewer
		s = awaitSettled(t, dir)
		return len(s.Owners) == 2*16 && len(s.Processes) == 3
	})
	if len(s.DeadLetters) > 0 || s.Lanes != 16 {
		t.Errorf("%+v", s)
	}
	for _, typ := range []string{"first", "second", "third"} {
		if n := strings.Count(mustWork(t, dir, "archive", "cat", "--type="+typ), "\n"); n != 20 {
			t.Errorf("%d events of type %s are archived, want 20", n, typ)
		}
	}
	if out := mustWork(t, dir, "deadletters", "ls"); !strings.HasSuffix(out, "\nno dead letter matches\n") || strings.Count(out, "\n") != 2 {
		t.Error(out)
	}
	if out := mustWork(t, dir, "deadletters", "requeue", "--sink=ingress"); !strings.HasPrefix(out, "0 dead letters queued again") {
		t.Error(out)
	}
	// The other commands find the system in the same way.
	for _, c := range []struct{ args, want string }{
		{"expect --type=third --count=20 --since=10m", `20 of 20 events delivered to archive and ingress`},
		{"tail --type=third --limit=20 --since=10m", `(?s)(third.*){20}`},
		{"audit", `60 events accepted ever, of 3 keys(?s:.*)nothing is missing`},
		{"archive verify", `60 events: offsets are dense`},
		{"archive ls", `from offset`},
		{"lanes", `ingress +15 +forwarder-1`},
		{"doctor", `, 0 faults`},
	} {
		if out := mustWork(t, dir, strings.Fields(c.args)...); !regexp.MustCompile(c.want).MatchString(out) {
			t.Errorf("%s: %s", c.args, out)
		}
	}
	if out := mustWork(t, dir, "migrate", "--database-url="+environment(t, dir, "WAYBILL_DATABASE_URL"), "--nats-url="+environment(t, dir, "WAYBILL_NATS_URL")); !strings.Contains(out, "16 lanes") || !strings.Contains(out, "EVENTS") {
		t.Error(out)
	}
	out, code := waybill(t, dir, nil, "migrate", "--lanes=8", "--database-url="+environment(t, dir, "WAYBILL_DATABASE_URL"))
	if code != 1 || !strings.Contains(out, "WAYBILL_LANES=16") {
		t.Errorf("status %d with other lanes: %s", code, out)
	}
	// Killed, it takes everything with it.
	after := again.parts(t)
	if err := again.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for name, pid := range after {
		awaitEnd(t, name, pid)
	}
}

func mustAbs(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func mustWork(t *testing.T, dir string, args ...string) string {
	t.Helper()
	out, code := waybill(t, dir, nil, args...)
	if code != 0 {
		t.Fatalf("waybill %s: status %d: %s", strings.Join(args, " "), code, out)
	}
	return out
}

func environment(t *testing.T, dir, key string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, defaultDir, "env"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), key+"="); ok {
			return value
		}
	}
	t.Fatalf("%s is not in the file", key)
	return ""
}

func awaitEnd(t *testing.T, name string, pid int) {
	t.Helper()
	for deadline := time.Now().Add(programLimit); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err := syscall.Kill(pid, 0); errors.Is(err, syscall.ESRCH) || isZombie(pid) {
			return
		}
	}
	t.Errorf("%s, process %d, lives on", name, pid)
}

// isZombie reports whether a process has ended and its parent, which may be whoever takes
// care of orphans, has not asked how.
func isZombie(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, ok := strings.Cut(string(data), ") ")
	return ok && strings.HasPrefix(rest, "Z")
}

// mustHole listens, and answers nobody.
func mustHole(t *testing.T) (addr string, asked <-chan struct{}) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	called := make(chan struct{}, 100)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			called <- struct{}{}
		}
	}()
	return l.Addr().String(), called
}

// What is wrong with a command line has a status of its own, wherever the parser or the command finds it.
func TestWrongCommandLinesHaveTheirOwnStatus(t *testing.T) {
	for _, c := range []struct {
		env, args, says string
	}{
		{"", "stauts", `did you mean "status"`},
		{"", "status", "WAYBILL_DATABASE_URL"},
		{"", "migrate", "WAYBILL_DATABASE_URL"},
		{"WAYBILL_LANES=x", "status --database-url=x", "WAYBILL_LANES"},
		{"WAYBILL_DATABASE_URL_FILE=/nowhere", "status", "/nowhere"},
		{"", "archive ls", "--s3-bucket"},
		{"", "archive cat --limit=-1", "--limit"},
		{"", "trace 1", "--query-url"},
		{"", "trace", "<id>: is missing"},
		{"", "emit --to=nowhere", "--to"},
		{"", "emit --count=0", "--every"},
		{"", "emit --every=1", "a number and its unit, such as 500ms"},
		{"", "healthcheck 127.0.0.1:9090", "want a URL"},
		{"", "dev --once=0", "--once"},
		{"", "dev --lanes=0", "--lanes: 0; want 1 to 256"},
		{"WAYBILL_LANES=0", "dev", "WAYBILL_LANES: 0; want 1 to 256"},
		{"", "dev --forwarders=0", "--forwarders: 0; want 1 to 8"},
		{"WAYBILL_NATS_URL=nats://127.0.0.1:1", "dev", "WAYBILL_NATS_URL is set"},
		{"", "status --database-url=", "--database-url: is empty; want postgres://"},
		{"", "status --database-url=foo", "--database-url: is no URL"},
		{"WAYBILL_DATABASE_URL=foo", "lanes", "WAYBILL_DATABASE_URL: is no URL"},
		{"", "emit --outbox=foo", "--outbox: is no URL"},
		{"", "tail --nats-url=http://x", "--nats-url: has the scheme http://"},
		{"", "tail --nats-creds=/nowhere", "/nowhere"},
		{"", "tail --lane=256", "--lane: 256; want 0 to 255"},
		{"", "endpoint --addr=foo", `--addr: "foo"; want host:port`},
		{"WAYBILL_ENDPOINT_ADDR=foo", "endpoint", `WAYBILL_ENDPOINT_ADDR: "foo"; want host:port`},
		{"", "endpoint --max-records=0", "--max-records: 0"},
		{"", "config print foo", "waybill --help"},
		{"", "forwarder", "--ingress-endpoint (WAYBILL_INGRESS_ENDPOINT), --s3-bucket (WAYBILL_S3_BUCKET)"},
		{"WAYBILL_IN_FLIGHT=0", "forwarder --s3-bucket=b", "WAYBILL_IN_FLIGHT: 0; want more than 0"},
		{"", "forwarder --ingress-endpoint=http://x", "--ingress-endpoint (WAYBILL_INGRESS_ENDPOINT)"},
		{"", "ingest --database-url=postgres://x@127.0.0.1:1/x --event-ttl=-1s", "--event-ttl: -1s; want 0 or more"},
		{"", "janitor --database-url=postgres://x@127.0.0.1:1/x --queue-bytes=1", "--queue-bytes: 1; want"},
		{"", "migrate --database-url=postgres://x@127.0.0.1:1/x --sinks=Bad", "--sinks: "},
		{"", "archive ls --s3-bucket=b --s3-endpoint=x", `--s3-endpoint (WAYBILL_S3_ENDPOINT) is "x"`},
		{"", "trace 1 --query-url=foo", "--query-url"},
		{"", "bench quick --runs=2", "--runs"},
	} {
		var env []string
		if c.env != "" {
			env = []string{c.env}
		}
		out, status := waybill(t, t.TempDir(), env, strings.Fields(c.args)...)
		if status != 80 || !strings.Contains(out, c.says) {
			t.Errorf("%s waybill %s: status %d, want 80 and %q; %s", c.env, c.args, status, c.says, out)
		}
	}
}

func TestVersionFlag(t *testing.T) {
	if out, status := waybill(t, t.TempDir(), nil, "--version"); status != 0 || !strings.HasPrefix(out, "waybill ") || !strings.Contains(out, " go1.") {
		t.Errorf("status %d: %s", status, out)
	}
}

// Help is where people look for it.
func TestHelp(t *testing.T) {
	for args, want := range map[string]string{"help": "Commands:", "help emit": "--content-type", "help lanes pause": "--reason", "emit --help": "--content-type"} {
		if out, status := waybill(t, t.TempDir(), nil, strings.Fields(args)...); status != 0 || !strings.Contains(out, want) {
			t.Errorf("%s: status %d, %s", args, status, out)
		}
	}
}

// A command that is interrupted did not do what it was asked to: its status must not say so. That of
// a process that was asked to stop is another matter.
func TestInterruptedCommandsFail(t *testing.T) {
	for _, c := range []struct {
		args   string // HOLE is where nobody answers
		status int
	}{
		{"deadletters requeue --all --lanes=4 --database-url=postgres://waybill@HOLE/waybill", 1},
		{"deadletters purge --all --yes --lanes=4 --database-url=postgres://waybill@HOLE/waybill", 1},
		{"deadletters show 4096 --lanes=4 --database-url=postgres://waybill@HOLE/waybill", 1},
		{"migrate --database-url=postgres://waybill@HOLE/waybill --nats-url=nats://HOLE", 1},
		{"archive cat --s3-bucket=b --s3-endpoint=http://HOLE --s3-access-key=a --s3-secret-key=s", 1},
		{"replay --sink=ingress --from=stream --ingress-endpoint=127.0.0.1:1 --nats-url=nats://HOLE", 1},
		{"replay --sink=archive --from=archive --dry-run --s3-bucket=b --s3-endpoint=http://HOLE --s3-access-key=a --s3-secret-key=s", 1},
		{"healthcheck http://HOLE/readyz", 1},
		{"emit --to=http://HOLE", 1},
		{"janitor --database-url=postgres://waybill@HOLE/waybill --nats-url=nats://HOLE --admin-addr=127.0.0.1:0", 0},
	} {
		t.Run(strings.Fields(c.args)[0]+" "+strings.Fields(c.args)[1], func(t *testing.T) {
			addr, asked := mustHole(t)
			p := start(t, t.TempDir(), nil, strings.Fields(strings.ReplaceAll(c.args, "HOLE", addr))...)
			select {
			case <-asked:
			case <-p.done:
				t.Fatalf("it ended by itself: %s", p.text())
			}
			if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
			out, status := p.await(t)
			if status != c.status || c.status == 1 && !strings.Contains(out, "waybill: ") {
				t.Errorf("status %d, want %d; %s", status, c.status, out)
			}
		})
	}
}
