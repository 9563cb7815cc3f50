package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/waybillhq/waybill/internal/devrun"
)

// settingsByFlag runs config print and returns what it says, by command and flag.
func settingsByFlag(t *testing.T, args ...string) map[string]setting {
	t.Helper()
	r := command(t, nil, append([]string{"config", "print", "-o", "json"}, args...)...)
	if r.failure != nil {
		t.Fatal(r.failure)
	}
	out := map[string]setting{}
	for line := range strings.Lines(r.out) {
		var s setting
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		out[s.Command+" "+s.Flag] = s
	}
	return out
}

// Each of the places that a setting can come from is named, and no secret is shown.
func TestConfigPrint(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("WAYBILL_DIR", dir)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("geheim-from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"WAYBILL_DATABASE_URL": "postgres://me:geheim@db:5432/waybill?sslmode=require&sslpassword=geheim",
		"WAYBILL_NATS_URL":     "nats://geheim@nats-1:4222,nats://me:geheim@nats-2:4222",
		"WAYBILL_LANES":        "32", "WAYBILL_S3_SECRET_KEY_FILE": secret, "WAYBILL_INGRESS_HEADERS": "authorization=geheim",
	} {
		t.Setenv(name, value)
	}
	all := settingsByFlag(t)
	for key, want := range map[string]setting{
		"ingest database-url":       {Value: "postgres://me:xxxxx@db:5432/waybill?sslmode=require&sslpassword=xxxxx", Source: "variable", From: "WAYBILL_DATABASE_URL"},
		"janitor nats-url":          {Value: "nats://xxxxx@nats-1:4222,nats://me:xxxxx@nats-2:4222", Source: "variable", From: "WAYBILL_NATS_URL"},
		"ingest lanes":              {Value: 32.0, Source: "variable", From: "WAYBILL_LANES"},
		"ingest event-ttl":          {Value: "168h0m0s", Source: "default"},
		"forwarder s3-secret-key":   {Value: "xxxxx", Source: "file", From: secret + " (WAYBILL_S3_SECRET_KEY_FILE)"},
		"forwarder s3-access-key":   {Value: "", Source: "default"},
		"forwarder s3-path-style":   {Value: false, Source: "default"},
		"forwarder ingress-tls":     {Value: false, Source: "default"},
		"forwarder archive-linger":  {Value: all["forwarder archive-linger"].Value, Source: "default"},
		"janitor retransmit-every":  {Value: "2s", Source: "default"},
		"forwarder s3-bucket":       {Value: "", Source: "default"},
		"ingest dedupe-attribute":   {Value: "", Source: "default"},
		"forwarder ingress-headers": {Source: "variable", From: "WAYBILL_INGRESS_HEADERS"},
	} {
		got, ok := all[key]
		list, isList := got.Value.([]any)
		if isList && (len(list) != 1 || list[0] != "authorization=xxxxx") {
			t.Errorf("%s: %v", key, got.Value)
		}
		if !ok || got.Source != want.Source || got.From != want.From || !isList && got.Value != want.Value {
			t.Errorf("%s: %+v, want %+v", key, got, want)
		}
	}
	if text := command(t, nil, "config", "print"); text.failure != nil || strings.Contains(text.out, "geheim") || !strings.Contains(text.out, "--lanes") {
		t.Errorf("%+v", text)
	}
	// What a flag says goes first, and the flags are those of the command that is asked for.
	forwarder := settingsByFlag(t, "forwarder", "--lanes=7", "--in-flight", "2")
	if s := forwarder["forwarder lanes"]; s.Value != 7.0 || s.Source != "flag" || forwarder["forwarder in-flight"].Value != 2.0 || len(forwarder) < 20 {
		t.Errorf("%+v", forwarder)
	}
	if _, other := forwarder["ingest lanes"]; other {
		t.Error("another command's settings are printed too")
	}
}

func TestConfigPrintOfARunningStack(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("WAYBILL_DIR", dir)
	text := "WAYBILL_DATABASE_URL=postgres://dev:geheim@127.0.0.1:1/dev\nWAYBILL_LANES=7\n"
	if err := os.WriteFile(filepath.Join(dir, devrun.EnvironmentFile), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	all := settingsByFlag(t, "deadletters", "ls")
	if s := all["deadletters ls database-url"]; s.Source != "running dev" || s.From != dir || s.Value != "postgres://dev:xxxxx@127.0.0.1:1/dev" {
		t.Errorf("%+v", s)
	}
	if s := all["deadletters ls since"]; s.Value != "" || s.Source != "default" || s.Variable != "" {
		t.Errorf("%+v", s)
	}
	// The processes take no other system's servers by accident, and what they lack is said.
	if s := settingsByFlag(t, "ingest")["ingest database-url"]; s.Source != "unset" || s.Value != "" {
		t.Errorf("%+v", s)
	}
}

func TestConfigPrintOfNothing(t *testing.T) {
	mustFail(t, command(t, nil, "config", "print", "archive"), "archive", "all of its name")
	mustFail(t, command(t, nil, "config", "print", "nosuch"), "nosuch")
	mustFail(t, command(t, nil, "config", "print", "ingest", "--nosuch"), "--nosuch")
	t.Setenv("WAYBILL_EVENT_TTL", "soon")
	mustFail(t, command(t, nil, "config", "print", "ingest"), "soon", "event-ttl")
}

// Who has written a URL or a header wrong looks at it with this command: it must not show the password
// then either.
func TestConfigPrintOfMalformedSecrets(t *testing.T) {
	t.Setenv("WAYBILL_DIR", t.TempDir())
	for _, url := range []string{
		"postgres://me:12#geheim@db/waybill", "postgres://me:12/geheim@db/waybill", "postgres://me:12?geheim@db/waybill",
		"postgres://me:4711,geheim@db/waybill", "postgres://me:geheim,4711@db/waybill", "postgres://me:geheim@db:port/waybill",
		"me:geheim@db/waybill", "host=db password=geheim",
	} {
		t.Setenv("WAYBILL_DATABASE_URL", url)
		r := command(t, nil, "config", "print", "ingest")
		if r.failure != nil || strings.Contains(r.out, "geheim") || strings.Contains(r.out, "4711") || strings.Contains(r.out, ":12") {
			t.Errorf("%s: %+v", url, r)
		}
	}
	t.Setenv("WAYBILL_DATABASE_URL", "postgres://me:geheim@db-1:5432,db-2:5432/waybill")
	if r := command(t, nil, "config", "print", "ingest"); r.failure != nil || strings.Contains(r.out, "geheim") {
		t.Errorf("of two hosts: %+v", r)
	}
	t.Setenv("WAYBILL_S3_ENDPOINT", "http://key:geheim@s3:9000")
	if s := settingsByFlag(t, "forwarder")["forwarder s3-endpoint"]; s.Value != "http://key:xxxxx@s3:9000" {
		t.Errorf("%+v", s)
	}
	t.Setenv("WAYBILL_NATS_URL", "nats://127.0.0.1:1")
	for _, headers := range []string{"authorization: Bearer geheim", "authorization: Bearer geheim==", "x-a=b;geheim"} {
		t.Setenv("WAYBILL_INGRESS_HEADERS", headers)
		for _, args := range [][]string{{"config", "print", "forwarder"}, {"doctor", "--database-url=postgres://127.0.0.1:1/x", "--ingress-endpoint=127.0.0.1:1"}} {
			r := command(t, nil, args...)
			if text := fmt.Sprint(r.failure) + r.out + r.err; strings.Contains(text, "geheim") || args[0] == "doctor" && !strings.Contains(text, "name=value") {
				t.Errorf("%s: %v: %+v", headers, args, r)
			}
		}
	}
	if s := settingsByFlag(t, "forwarder", "--ingress-headers=x-a=b;x-c=d=e")["forwarder ingress-headers"]; fmt.Sprint(s.Value) != "[x-a=xxxxx x-c=xxxxx]" {
		t.Errorf("%+v", s)
	}
}
