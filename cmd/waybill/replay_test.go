package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/waybillhq/waybill/internal/replay"
)

func TestReplayReport(t *testing.T) {
	r := replayReport{Name: "x", Sink: "ingress", Target: "there:1", Took: 2, Result: replay.Result{From: "stream"}}
	r.Lanes, r.Types = map[int]int64{3: 2, 11: 1}, map[string]int64{"b": 1, "a": 2}
	r.Events = 3
	if text := r.text(); text != "replay x: 3 events delivered to there:1, from the stream, in 2.0 s\nlane   events\n3      2\n11     1\ntype   events\na      2\nb      1\n" {
		t.Errorf("%q", text)
	}
	if err := r.verdict(); err != nil {
		t.Error(err)
	}
	r.Resumed, r.Requests, r.Repeated = 1, 7, 2
	r.Refused, r.Refusals = 2, map[string]int64{"BAD": 2}
	r.Examples = []replay.Refusal{{Source: "/s", Type: "t", ID: "7", Code: "BAD", Reason: "two\nlines"}}
	r.Missing = []string{"a gap"}
	for i := range 25 {
		r.Types[strings.Repeat("c", i+1)] = 1
	}
	text := r.text()
	for _, want := range []string{", 1 of them before", "2 of 7 requests had to be sent again", "refused with BAD: 2 events\n  /s t 7: BAD two lines\n", "MISSING: a gap\n", "and 7 more"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %s", want, text)
		}
	}
	if err := r.verdict(); err == nil || !strings.Contains(err.Error(), "2 events refused") || !strings.Contains(err.Error(), "missing") {
		t.Error(err)
	}
	r.Before = true
	if text := r.text(); !strings.HasPrefix(text, "replay x is done already: 3 events delivered to there:1; give another name") {
		t.Error(text)
	}
	r.DryRun = true
	if text := r.text(); !strings.HasPrefix(text, "3 events would be delivered to ingress, from the stream\n") {
		t.Error(text)
	}
}

// A replay writes where nothing is, or replays were, and never into a live archive: not into its own
// pipeline's under another name of the server, nor into another pipeline's.
func TestReplayWritesIntoNoLiveArchive(t *testing.T) {
	p := mustPlant(t)
	sent := p.mustArchiveSome(t)
	replay := func(endpoint, prefix string) result {
		args := append([]string{
			"replay", "--sink=archive", "--from=archive", "--to-s3-endpoint", endpoint, "--to-s3-prefix", prefix,
			"--to-s3-access-key", p.s3.AccessKey, "--to-s3-secret-key", p.s3.SecretKey,
		}, p.s3Flags()...)
		return command(t, nil, args...)
	}
	_, port, _ := strings.Cut(strings.TrimPrefix(p.s3.Endpoint, "http://"), ":")
	for _, endpoint := range []string{p.s3.Endpoint, p.s3.Endpoint + "/", "http://localhost:" + port} {
		mustFail(t, replay(endpoint, p.archive.Prefix), "--to-s3-prefix", p.archive.Prefix, "live archive")
	}
	for range 2 { // the second time it holds replays
		if r := replay(p.s3.Endpoint, "copies"); r.failure != nil || !strings.Contains(r.out, fmt.Sprintf("%d events delivered", sent)) {
			t.Errorf("%+v", r)
		}
	}
	var n int
	for _, records := range p.archived(t) {
		n += len(records)
	}
	if n != sent {
		t.Errorf("the live archive has %d events, and not %d", n, sent)
	}
}

// A replay that found no endpoint says which address and which flag that is about.
func TestReplayWithoutAnEndpoint(t *testing.T) {
	c := replayCommand{Sink: ingressSink, RetryFor: 2 * time.Second}
	c.ToIngressEndpoint = "127.0.0.1:9"
	refused := errors.New(`lane 10: the sink took nothing for 2s: rpc error: code = Unavailable desc = connection error: desc = "transport: Error while dialing: dial tcp 127.0.0.1:9: connect: connection refused"`)
	report := replayReport{Target: c.ToIngressEndpoint, Result: replay.Result{From: replay.FromArchive}}
	want := "the endpoint at 127.0.0.1:9 took nothing for 2s: connection refused; start it, or correct --to-ingress-endpoint (0 events delivered; "
	if err := c.failure(refused, report); !strings.HasPrefix(err.Error(), want) {
		t.Errorf("%v; want %s…", err, want)
	}
}

func TestReplayLine(t *testing.T) {
	p := replay.Progress{Part: 0.5, Events: 300, Here: 100, Refused: 2, Trouble: "no\nanswer"}
	want := "[###############...............]  50 % read, 300 events delivered, 10 a second, 2 refused, some 20s left; tried again: no answer"
	if line := replayLine(p, 0.25, 5*time.Second*2, true, false); line != want {
		t.Errorf("%q, want %q", line, want)
	}
	if line := replayLine(replay.Progress{Part: 1, Events: 1}, -1, time.Second, false, true); line != "100 % read, 1 event counted" {
		t.Errorf("%q", line)
	}
}
