package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/waybillhq/waybill/internal/devrun"
)

// Every command says of a Postgres that is not there once what was tried and which flag names it, and never the
// password.
func TestCommandsNameAPostgresThatIsAway(t *testing.T) {
	const url = "postgres://me:geheim@127.0.0.1:1/x"
	for _, args := range [][]string{
		{"lanes"},
		{"expect"},
		{"audit"},
		{"deadletters", "ls"},
		{"deadletters", "requeue", "--all"},
		{"migrate", "--wait=0s"},
		{"bench", "quick"},
	} {
		if args[0] == "bench" {
			args = append(args, "--out="+t.TempDir(), "--http-addr=http://127.0.0.1:1", "--grpc-addr=127.0.0.1:1")
		}
		r := command(t, nil, append(args, "--database-url="+url)...)
		mustFail(t, r, "connect to Postgres at 127.0.0.1:1, database x, as user me: connection refused", "--database-url")
		if r.failure == nil {
			continue
		}
		if text := r.failure.Error(); strings.Count(text, "127.0.0.1:1") != 1 || strings.Contains(text+r.err+r.out, "geheim") {
			t.Errorf("%s: %s", args, text)
		}
	}
}

// withoutAWS keeps what is configured on this machine for other programs away from a test.
func withoutAWS(t *testing.T) {
	t.Helper()
	for _, variable := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"} {
		t.Setenv(variable, "")
	}
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
	t.Setenv("AWS_CONFIG_FILE", "/nowhere")
}

// Keys that are missing are named as such, and beside a `waybill dev`, whose archive needs none, why that was not asked.
func TestArchiveWithoutKeys(t *testing.T) {
	withoutAWS(t)
	const keys = "no keys are given"
	r := command(t, nil, "archive", "ls", "--s3-bucket=nosuch", "--s3-endpoint=http://127.0.0.1:1")
	mustFail(t, r, "the bucket nosuch at http://127.0.0.1:1: "+keys, "give --s3-access-key and --s3-secret-key (WAYBILL_S3_ACCESS_KEY, WAYBILL_S3_SECRET_KEY)")
	if r.failure != nil && strings.Contains(r.failure.Error(), "operation error") {
		t.Error(r.failure)
	}
	dir := t.TempDir()
	t.Setenv("WAYBILL_DIR", dir)
	text := "WAYBILL_S3_ENDPOINT=http://127.0.0.1:1\nWAYBILL_S3_BUCKET=dev\nWAYBILL_S3_ACCESS_KEY=a\nWAYBILL_S3_SECRET_KEY=b\n"
	if err := os.WriteFile(filepath.Join(dir, devrun.EnvironmentFile), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	mustFail(t, command(t, nil, "archive", "ls", "--s3-bucket=nosuch"), "the bucket nosuch at AWS, us-east-1: "+keys, "the `waybill dev` in "+dir+" is not asked, since --s3-bucket names a server")
	mustFail(t, command(t, nil, "archive", "ls"), "the bucket dev at http://127.0.0.1:1: connection refused", "--s3-endpoint (WAYBILL_S3_ENDPOINT)", "if it was killed, start it again")
}

// The settings of a replay's target are not called by the names of the archive's.
func TestReplayNamesTheSettingsOfItsTarget(t *testing.T) {
	withoutAWS(t)
	archive := []string{"replay", "--sink=archive", "--from=archive", "--s3-bucket=b", "--s3-endpoint=http://127.0.0.1:1", "--s3-access-key=a", "--s3-secret-key=s"}
	for _, c := range []struct {
		flags []string
		want  []string
	}{
		{[]string{"--to-s3-endpoint=here"}, []string{`--to-s3-endpoint is "here": want a URL`}},
		{[]string{"--to-s3-access-key=x"}, []string{"--to-s3-access-key and --to-s3-secret-key: give both"}},
		{[]string{"--to-s3-prefix=a//b"}, []string{`--to-s3-prefix is "a//b"`}},
		{[]string{"--to-s3-bucket=c", "--to-s3-endpoint=http://127.0.0.1:2"}, []string{"the bucket c at http://127.0.0.1:2: no keys are given", "--to-s3-access-key and --to-s3-secret-key"}},
		{[]string{"--to-s3-bucket=c", "--to-s3-endpoint=http://127.0.0.1:2", "--to-s3-access-key=a", "--to-s3-secret-key=s"}, []string{"the bucket c at http://127.0.0.1:2: connection refused; start the server, or correct --to-s3-endpoint"}},
	} {
		r := command(t, nil, append(archive, c.flags...)...)
		mustFail(t, r, c.want...)
		if r.failure != nil && (strings.Contains(r.failure.Error(), "WAYBILL_S3_") || strings.Contains(r.failure.Error(), " --s3-")) {
			t.Errorf("%s: %v", c.flags, r.failure)
		}
	}
	mustFail(t, command(t, nil, append(archive, "--to-s3-bucket=c")...), "the bucket c at http://127.0.0.1:1: connection refused", "--s3-endpoint (WAYBILL_S3_ENDPOINT)")
}

func TestRedactedNATS(t *testing.T) {
	for text, want := range map[string]string{
		"nope": "nope", "nats-1:4222,nats-2": "nats-1:4222,nats-2", "nats://nope": "nats://nope", "": "",
		"geheim@nope": hidden, "nats://geheim@nope": "nats://xxxxx@nope", "nope,nats://me:geheim@b": hidden, "a=geheim": hidden,
	} {
		if got := redactedNATS(text); got != want && !(want == hidden && !strings.Contains(got, "geheim")) {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
