package main

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/waybillhq/waybill/internal/devrun"
	"github.com/waybillhq/waybill/internal/roundtrip"
	"github.com/waybillhq/waybill/pipeline"
)

func TestVerdict(t *testing.T) {
	perfect := func() *tripResult {
		return &tripResult{reports: []roundtrip.Report{
			{Sink: "ingress", Accepted: 10, Delivered: 10}, {Sink: "archive", Accepted: 10, Delivered: 10},
		}}
	}
	if err := perfect().verdict(); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(*tripResult){
		"event 3":                  func(r *tripResult) { r.notAccepted = errors.New("event 3 was refused") },
		"pending: ingress 4":       func(r *tripResult) { r.pending = map[string]pipeline.Backlog{"ingress": {Events: 4}} },
		"dead letters: archive C ": func(r *tripResult) { r.deadLetters = map[[2]string]int64{{"archive", "C"}: 1} },
		"ingress does not have":    func(r *tripResult) { r.reports[0].Missing = 1 },
		"archive does not have":    func(r *tripResult) { r.reports[1].Wrong = 1 },
	} {
		for _, retransmits := range []int64{0, 1} {
			r := perfect()
			r.retransmits = retransmits
			change(r)
			if err := r.verdict(); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v", want, err)
			}
		}
	}
	for _, test := range []struct {
		name     string
		change   func(*tripResult)
		tolerate bool // where a janitor retransmitted
	}{
		{"ingress double", func(r *tripResult) { r.reports[0].Double = 1 }, true},
		{"ingress out of order", func(r *tripResult) { r.reports[0].OutOfOrder = 1 }, true},
		{"archive out of order", func(r *tripResult) { r.reports[1].OutOfOrder = 1 }, true},
		{"archive double", func(r *tripResult) { r.reports[1].Double = 1 }, false},
		{"archive gap", func(r *tripResult) { r.reports[1].Gaps = 1 }, false},
	} {
		r := perfect()
		test.change(r)
		if r.verdict() == nil {
			t.Errorf("%s passes", test.name)
		}
		r.retransmits = 1
		if err := r.verdict(); (err == nil) != test.tolerate {
			t.Errorf("%s after a retransmission: %v", test.name, err)
		}
	}
}

func TestRenderLive(t *testing.T) {
	at := time.Now()
	before := devrun.Counters{Accepted: 100, Delivered: map[string]int64{"ingress": 90}}
	now := devrun.Counters{Accepted: 300, Delivered: map[string]int64{"ingress": 190, "archive": 50}}
	survey := pipeline.Survey{Now: at, Backlogs: []pipeline.Backlog{
		{Sink: "archive", Events: 7, OldestAccepted: at.Add(-1500 * time.Millisecond)},
		{Sink: "other", Events: 1, OldestAccepted: at.Add(-time.Second)},
	}}
	want := "accepted 300 (100/s) · archive 50 (25/s), 7 pending · ingress 190 (50/s) · other 0 (0/s), 1 pending · oldest 1.5 s"
	if got := renderLive(before, now, 2*time.Second, survey, nil); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := renderLive(now, now, time.Second, pipeline.Survey{}, nil); !strings.HasSuffix(got, "nothing pending") {
		t.Error(got)
	}
	if got := renderLive(now, now, time.Second, pipeline.Survey{}, errors.New("x")); !strings.HasSuffix(got, "Postgres does not answer") {
		t.Error(got)
	}
}

// What `waybill dev` shows for copying finds the system that showed it, and no other one.
func TestCommandsOfADirectory(t *testing.T) {
	here := t.TempDir()
	t.Chdir(here)
	for dir, want := range map[string]string{
		filepath.Join(here, defaultDir): "bin/waybill",
		"/data/second":                  "WAYBILL_DIR=/data/second bin/waybill",
		"/my data/it's":                 `WAYBILL_DIR='/my data/it'\''s' bin/waybill`,
	} {
		if got, err := ofDirectory("bin/waybill", dir); got != want || err != nil {
			t.Errorf("%s: %s, %v; want %s", dir, got, err, want)
		}
	}
}

func TestScreen(t *testing.T) {
	var out bytes.Buffer
	s := newScreen(&console{out: &out, terminal: true})
	s.live("one")
	s.line("said")
	s.live("two")
	s.end()
	one, two := noWrap+"one"+wrap, noWrap+"two"+wrap
	if want := clear + one + clear + "said\n" + one + clear + two + "\n"; out.String() != want {
		t.Errorf("%q", out.String())
	}
	out.Reset()
	s = newScreen(&console{out: &out})
	s.live("one")
	s.live("two") // too soon
	s.line("said")
	s.end()
	if out.String() != "one\nsaid\n" {
		t.Errorf("%q", out.String())
	}
}

// What is counted is not slowed down by tracing.
func TestOnceTracesNothing(t *testing.T) {
	parse := func(args ...string) devrun.Config {
		t.Helper()
		parser, err := newParser(newRunningStack())
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := parser.Parse(append([]string{"dev"}, args...))
		if err != nil {
			t.Fatal(err)
		}
		con := &console{out: &bytes.Buffer{}}
		config, err := parsed.Model.Target.Addr().Interface().(*commands).Dev.config(t.TempDir(), con, newScreen(con))
		if err != nil {
			t.Fatal(err)
		}
		return config
	}
	for want, args := range map[int][]string{keptSpans: nil, 0: {"--once=5"}, 700: {"--keep-spans=700"}} {
		if got := parse(args...).KeepSpans; got != want {
			t.Errorf("%v: %d spans are kept, want %d", args, got, want)
		}
	}
	if got := devrun.DefaultConfig().KeepSpans; got != 0 {
		t.Errorf("who does not ask for it, such as a benchmark, keeps %d spans", got)
	}
}
