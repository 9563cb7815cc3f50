package main

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/waybillhq/waybill/pipeline"
)

func TestStatusLine(t *testing.T) {
	s := sampleStatus()
	s.Paused = map[string]pipeline.SinkPauses{"archive": {All: &pipeline.Pause{}}}
	want := "2026-01-02T03:04:05Z · archive 0 pending, paused · ingress 25 pending, oldest 1m30s · 1 ingest, 1 forwarder, 0 janitor, 1 with problems · 6 dead letters"
	if got := s.line(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	s = &status{At: s.At, Problems: []string{"NATS: away"}}
	if got := s.line(); got != "2026-01-02T03:04:05Z · PROBLEM: NATS: away" {
		t.Error(got)
	}
}

// A screen is written over the one before: nothing of that is left, however much shorter the new one is.
func TestStatusScreen(t *testing.T) {
	var first, next strings.Builder
	s := sampleStatus()
	if err := s.writeScreen(&first, true, time.Second); err != nil {
		t.Fatal(err)
	}
	if err := s.writeScreen(&next, false, time.Second); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(first.String(), clearScreen) || strings.Contains(next.String(), clearScreen) || !strings.Contains(next.String(), home) || !strings.HasSuffix(next.String(), clearBelow) {
		t.Errorf("%q\n%q", first.String(), next.String())
	}
	for line := range strings.Lines(next.String()) {
		if strings.HasSuffix(line, "\n") && !strings.HasSuffix(line, clearRest+"\n") {
			t.Errorf("%q leaves what was there", line)
		}
	}
}

// It goes on, also while no server answers, until it is interrupted, and that is a good end.
func TestStatusWatch(t *testing.T) {
	p := mustPlant(t)
	args := []string{"status", "--watch", "--every=100ms", "--nats-url", p.nats.URL(), "--lanes=4"}
	for _, c := range []struct {
		more []string
		want string
	}{
		{[]string{"--database-url", p.url}, `archive 0 pending · ingress 0 pending · 0 ingest, 0 forwarder, 0 janitor · 0 dead letters\n(.*\n)*.* archive 0 pending`},
		{[]string{"--database-url", "postgres://x@127.0.0.1:1/x"}, `PROBLEM: Postgres: .*\n(.*\n)*.*PROBLEM: Postgres: `},
		{[]string{"--database-url", p.url, "-o", "json"}, `"lanes":4.*\n.*"lanes":4`},
	} {
		w := start(t, t.TempDir(), nil, append(args, c.more...)...)
		w.awaitText(t, c.want)
		if err := w.cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		out, code := w.await(t)
		if code != 0 {
			t.Errorf("%v: status %d: %s", c.more, code, out)
		}
		if strings.Contains(strings.Join(c.more, " "), "json") {
			for line := range strings.Lines(out) {
				if !json.Valid([]byte(line)) {
					t.Errorf("%q", line)
				}
			}
		}
	}
	mustFail(t, command(t, nil, "status", "--watch", "--every=1ms", "--database-url=x"), "--every: 1ms")
}
