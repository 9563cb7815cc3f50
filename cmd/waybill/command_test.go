package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"github.com/waybillhq/waybill/internal/devrun"
)

// result is what a command did.
type result struct {
	out, err string // standard output and error
	failure  error
}

// command runs a command line inside this process, with nobody's `waybill dev` around.
func command(t *testing.T, stdin io.Reader, args ...string) result {
	t.Helper()
	return commandAt(t, stdin, false, args...)
}

// commandAt is command; asks says whether standard input passes for a terminal.
func commandAt(t *testing.T, stdin io.Reader, asks bool, args ...string) result {
	t.Helper()
	if os.Getenv("WAYBILL_DIR") == "" {
		t.Setenv("WAYBILL_DIR", t.TempDir())
	}
	stack, parsed, err := parse(t, args)
	if err != nil {
		return result{failure: stack.explain(err)}
	}
	var out, errs bytes.Buffer
	con := &console{in: stdin, out: &out, err: &errs, env: os.Environ(), asks: asks}
	ctx, cancel := context.WithTimeout(t.Context(), programLimit)
	defer cancel()
	failure := run(ctx, parsed, stack, con)
	return result{out.String(), errs.String(), failure}
}

// parse reads a command line as main does.
func parse(t *testing.T, args []string) (*runningStack, *kong.Context, error) {
	t.Helper()
	stack := newRunningStack()
	parser, err := newParser(stack)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := parser.Parse(args)
	return stack, parsed, err
}

// mustFail wants a failure that contains each text.
func mustFail(t *testing.T, r result, texts ...string) {
	t.Helper()
	if r.failure == nil {
		t.Errorf("it does not fail: %+v", r)
		return
	}
	for _, text := range texts {
		if !strings.Contains(r.failure.Error(), text) {
			t.Errorf("%q does not say %q", r.failure, text)
		}
	}
}

func TestOneLine(t *testing.T) {
	for text, want := range map[string]string{
		" a\tb\r\n c ":               "a b c",
		"a\x1b[2J\x07b":              "a\ufffd[2J\ufffdb",
		"a\u009b2Jb\u202ec":          "a\ufffd2Jb\ufffdc",
		"caf\u00e9 \u4e16\U0001f600": "caf\u00e9 \u4e16\U0001f600",
		"\xff":                       "\ufffd",
	} {
		if got := oneLine(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestVersion(t *testing.T) {
	if r := command(t, nil, "version"); r.failure != nil || !strings.HasPrefix(r.out, "waybill ") || !strings.Contains(r.out, " go1.") {
		t.Errorf("%+v", r)
	}
}

func TestHealthcheck(t *testing.T) {
	status := http.StatusNoContent
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		if status != http.StatusNoContent {
			_, _ = io.WriteString(w, "no lanes")
		}
	}))
	if r := command(t, nil, "healthcheck", server.URL); r.failure != nil {
		t.Error(r.failure)
	}
	status = http.StatusServiceUnavailable
	mustFail(t, command(t, nil, "healthcheck", server.URL), "503", "no lanes")
	status = http.StatusNotFound
	mustFail(t, command(t, nil, "healthcheck", server.URL), "404", "/readyz")
	server.Close()
	mustFail(t, command(t, nil, "healthcheck", server.URL), "refused")
	mustFail(t, command(t, nil, "healthcheck", ":"), "healthcheck")
	mustFail(t, command(t, nil, "healthcheck"), "<url>: is missing")
	mustFail(t, command(t, nil, "healthcheck", "127.0.0.1:9090"), "want a URL")
}

func TestWrongFlags(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"status"}, "--database-url"},
		{[]string{"status"}, "WAYBILL_DATABASE_URL"},
		{[]string{"migrate"}, "--database-url"},
		{[]string{"migrate", "--database-url=postgres://x@127.0.0.1:1/x", "--lanes=0"}, "lanes: 0"},
		{[]string{"migrate", "--database-url=postgres://x@127.0.0.1:1/x", "--sinks=Bad"}, "sinks"},
		{[]string{"migrate", "--database-url=postgres://x@127.0.0.1:1/x", "--queue-bytes=1"}, "--queue-bytes: 1"},
		{[]string{"dev", "--once=-1"}, "once"},
		{[]string{"dev", "--once=0"}, "leave it out"},
		{[]string{"dev", "--ports=some"}, "--ports"},
		{[]string{"dev", "--once=1", "--ingress-endpoint=127.0.0.1:1"}, "--endpoint-admin"},
		{[]string{"dev", "--forwarders=0"}, "forwarders: 0"},
		{[]string{"deadletters", "ls"}, "--database-url"},
		{[]string{"deadletters", "ls", "--database-url=x", "--limit=0"}, "--limit"},
		{[]string{"deadletters", "ls", "--database-url=x", "--show-data"}, "-o json"},
		{[]string{"deadletters", "ls", "--database-url=x", "--state=gone"}, "state"},
		{[]string{"deadletters", "ls", "--database-url=x", "--since=yesterday"}, "yesterday"},
		{[]string{"deadletters", "ls", "--database-url=x", "--until=-2h"}, "how long ago"},
		{[]string{"deadletters", "ls", "--database-url=x", "-o", "yaml"}, "output"},
		{[]string{"deadletters", "show", "--database-url=x"}, "position"},
		{[]string{"deadletters", "show", "--database-url=x", "--id=1"}, "--source and --id"},
		{[]string{"deadletters", "show", "7", "--database-url=x", "--id=1", "--source=x"}, "position"},
		{[]string{"deadletters", "requeue", "--database-url=x"}, "--all"},
		{[]string{"deadletters", "requeue", "--database-url=x", "--sink=a", "--event-ttl=-1s"}, "--event-ttl"},
		{[]string{"deadletters", "purge", "--database-url=x", "--yes"}, "--all"},
		{[]string{"deadletters", "purge", "--database-url=x", "--sink=a", "--state=requeued"}, "state"},
		{[]string{"archive", "cat"}, "s3-bucket"},
		{[]string{"archive", "cat", "--since=-1"}, "since"},
		{[]string{"archive", "cat", "--s3-bucket=b", "--since=1h"}, "--since: \"1h\"; want an offset"},
		{[]string{"migrate", "--database-url=postgres://x@127.0.0.1:1/x", "--change-lanes"}, "--lanes"},
		{[]string{"replay"}, "--sink"},
		{[]string{"replay", "--sink=tape"}, "ingress"},
		{[]string{"replay", "--sink=ingress"}, "--ingress-endpoint"},
		{[]string{"replay", "--sink=archive"}, "--s3-bucket"},
		{[]string{"replay", "--sink=ingress", "--dry-run", "--since=yesterday"}, "how long ago"},
		{[]string{"replay", "--sink=ingress", "--dry-run", "--name=a/b"}, "--name"},
		{[]string{"replay", "--sink=ingress", "--to-ingress-endpoint=x"}, "--to-ingress-endpoint: \"x\""},
		{[]string{"replay", "--sink=ingress", "--ingress-endpoint=x:1", "--to-s3-bucket=b"}, "--to-ingress-endpoint"},
		{[]string{"replay", "--sink=archive", "--s3-bucket=b", "--to-ingress-endpoint=x:1"}, "--to-s3-bucket"},
		{[]string{"replay", "--sink=archive", "--from=archive", "--to-s3-bucket=b"}, "to be read"},
		{[]string{"replay", "--sink=archive", "--from=archive", "--s3-bucket=b", "--to-s3-prefix=waybill"}, "live archive"},
		{[]string{"replay", "--sink=ingress", "--from=archive", "--s3-bucket=b", "--dry-run", "--since=7"}, "--since"},
		{[]string{"replay", "--sink=ingress", "--from=archive", "--s3-bucket=b", "--dry-run", "--since=1h", "--until=2h"}, "not before"},
		{[]string{"replay", "--sink=ingress", "--from=archive", "--s3-bucket=b", "--dry-run", "--lane=300"}, "--lane: 300"},
		{[]string{"replay", "--sink=ingress", "--from=archive", "--s3-bucket=b", "--dry-run", "--rate=-1"}, "--rate"},
		{[]string{"endpoint", "--addr=nowhere"}, "host:port"},
		{[]string{"ingest"}, "--database-url"},
		{[]string{"nats-server"}, "--dir"},
	} {
		if strings.HasPrefix(test.args[0], "dev") {
			test.args = append(test.args, "--dir="+t.TempDir())
		}
		mustFail(t, command(t, nil, test.args...), test.want)
	}
}

// What a running `waybill dev` says of itself is for the commands that look at a system,
// and only where nobody says otherwise.
func TestRunningStack(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("WAYBILL_DIR", dir)
	text := "WAYBILL_DATABASE_URL=postgres://dev@127.0.0.1:1/dev\nWAYBILL_TO=http://127.0.0.1:1\nWAYBILL_LANES=7\nWAYBILL_S3_BUCKET=dev\nWAYBILL_S3_PREFIX=p\nOTEL_TRACES_EXPORTER=otlp\n"
	t.Setenv("OTEL_TRACES_EXPORTER", "none") // of another program, perhaps
	if err := os.WriteFile(filepath.Join(dir, devrun.EnvironmentFile), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	parse := func(args ...string) *commands {
		t.Helper()
		parser, err := newParser(newRunningStack())
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := parser.Parse(args)
		if err != nil {
			t.Fatal(err)
		}
		return parsed.Model.Target.Addr().Interface().(*commands)
	}
	c := parse("status")
	if c.Status.DatabaseURL != "postgres://dev@127.0.0.1:1/dev" || c.Status.Lanes.Lanes != 7 {
		t.Errorf("%+v", c.Status)
	}
	if c = parse("emit"); c.Emit.To != "http://127.0.0.1:1" {
		t.Errorf("%+v", c.Emit)
	}
	if c = parse("status", "--database-url=postgres://flag@127.0.0.1:1/x"); !strings.Contains(c.Status.DatabaseURL, "flag") {
		t.Errorf("%+v", c.Status)
	}
	if c = parse("archive", "cat", "--s3-prefix=p/replays/x"); c.Archive.Cat.S3Bucket != "dev" || c.Archive.Cat.S3Prefix != "p/replays/x" {
		t.Errorf("%+v", c.Archive.Cat)
	}
	if c = parse("replay", "--sink=archive"); c.Replay.S3Bucket != "dev" || c.Replay.S3Prefix != "p" {
		t.Errorf("%+v", c.Replay)
	}
	if c = parse("archive", "cat", "--s3-bucket=other"); c.Archive.Cat.S3Prefix == "p" {
		t.Errorf("%+v", c.Archive.Cat)
	}
	mustFail(t, command(t, nil, "deadletters", "ls"), "connect to Postgres at 127.0.0.1:1, database dev, as user dev: ", "if it was killed, start it again", dir)
	if c = parse("dev"); c.Dev.DatabaseURL != "" || c.Dev.Lanes.Lanes != 16 {
		t.Errorf("%+v", c.Dev)
	}
	mustFail(t, command(t, nil, "doctor", "--nats-url=nats://127.0.0.1:1", "--s3-bucket=other"), "--database-url", "is not asked, since --s3-bucket", dir)
	mustFail(t, command(t, nil, "archive", "ls", "--s3-bucket="), "is not asked, since --s3-bucket", dir)
	mustFail(t, command(t, nil, "status", "--database-url="), "--database-url: is empty", "is not asked, since --database-url", dir)
	mustFail(t, command(t, nil, "deadletters", "ls", "--database-url=postgres://other@127.0.0.1:1/x"), "as user other", "is not asked, since --database-url", dir)
	t.Setenv("WAYBILL_TO", "http://127.0.0.1:2")
	mustFail(t, command(t, nil, "audit"), "--database-url", "is not asked, since WAYBILL_TO", dir)
	t.Setenv("WAYBILL_DATABASE_URL", "postgres://variable@127.0.0.1:1/x")
	if c = parse("status"); !strings.Contains(c.Status.DatabaseURL, "variable") {
		t.Errorf("%+v", c.Status)
	}
	if c = parse("migrate"); c.Migrate.Lanes.Lanes != 16 {
		t.Errorf("%+v", c.Migrate)
	}
}

// Who runs a command elsewhere than the `waybill dev` that it is meant for is told so, and
// only where that can have been meant.
func TestNoStackRuns(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("WAYBILL_DIR", dir)
	for _, args := range [][]string{{"status"}, {"deadletters", "ls"}, {"lanes"}, {"lanes", "pause", "--sink=x"}, {"audit"}, {"doctor"}, {"expect"}} {
		mustFail(t, command(t, nil, args...), "missing flags: --database-url", "waybill dev", dir, "WAYBILL_DIR")
	}
	mustFail(t, command(t, nil, "archive", "cat"), "--s3-bucket", "waybill dev", "WAYBILL_DIR")
	for _, args := range [][]string{{"migrate"}, {"ingest"}, {"status", "--jsn", "--database-url=x"}} {
		if r := command(t, nil, args...); r.failure == nil || strings.Contains(r.failure.Error(), "waybill dev") {
			t.Errorf("%s: %v", args, r.failure)
		}
	}
}

// So it is where a server is taken by its default, and is not there; but not of one that was named.
func TestNoStackRunsAndNoServerIsNamed(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("WAYBILL_DIR", dir)
	away := serverError{errors.New("no answer"), true}
	explained := func(args ...string) error {
		t.Helper()
		stack, parsed, err := parse(t, args)
		if err != nil {
			t.Fatal(err)
		}
		return stack.explainFailure(away, parsed)
	}
	for _, args := range [][]string{{"tail"}, {"emit"}, {"replay", "--sink=ingress", "--ingress-endpoint=127.0.0.1:1"}} {
		mustFail(t, result{failure: explained(args...)}, "no answer; ", "none does in "+dir)
	}
	named := [][]string{
		{"tail", "--nats-url=nats://127.0.0.1:4222"},
		{"status", "--database-url=postgres://x@127.0.0.1:1/x"},
		{"emit", "--to=127.0.0.1:1"},
		{"emit", "--outbox=postgres://x@127.0.0.1:1/x"},
	}
	for _, args := range named {
		if err := explained(args...); err != error(away) {
			t.Errorf("%s: %v", args, err)
		}
	}
	t.Setenv("WAYBILL_NATS_URL", "nats://127.0.0.1:4222")
	if err := explained("tail"); err != error(away) {
		t.Error(err)
	}
}

func TestMigrateSaysWhatItWaitsFor(t *testing.T) {
	r := command(t, nil, "migrate", "--database-url=postgres://x@127.0.0.1:1/x", "--wait=3s") // so that it tries again on a loaded machine too
	mustFail(t, r, "127.0.0.1:1")
	if strings.Count(r.err, "waiting for Postgres, up to --wait (WAYBILL_MIGRATE_WAIT): connect to Postgres at 127.0.0.1:1, ") != 1 {
		t.Errorf("%q", r.err)
	}
}
