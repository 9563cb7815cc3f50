package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// healthy is a series of samples, one each 5 s, in which everything takes a second.
func healthy(rate int64, n int) []sample {
	out := make([]sample, n)
	for i := range out {
		at := int64(5 * (i + 1))
		out[i] = sample{
			at: time.Duration(at) * time.Second, emitted: at * rate, accepted: at * rate,
			events: activity{at * rate, (at - 1) * rate}, batches: activity{at, at - 1},
			pending: map[string]int64{"archive": rate}, received: at * rate,
		}
	}
	return out
}

func TestJudge(t *testing.T) {
	for _, rate := range []int64{1, 20, 1000} {
		if err := judge(healthy(rate, 6), float64(rate)); err != nil {
			t.Errorf("at %d events a second: %v", rate, err)
		}
	}
	for want, spoil := range map[string]func([]sample) []sample{
		"no row was inserted into events from 5s to 10s":   func(s []sample) []sample { s[1].events.inserted = s[0].events.inserted; return s },
		"no row was deleted from events from 10s to 15s":   func(s []sample) []sample { s[2].events.deleted = s[1].events.deleted; return s },
		"no row was inserted into batches from 0s to 5s":   func(s []sample) []sample { s[0].batches.inserted = 0; return s },
		"no row was deleted from batches from 25s to 30s":  func(s []sample) []sample { s[5].batches.deleted = s[4].batches.deleted; return s },
		"at 20s 170 rows of events are inserted and not":   func(s []sample) []sample { s[3].events.deleted = s[3].events.inserted - 170; return s },
		"at 30s 161 events are pending; want 160 at most":  func(s []sample) []sample { s[5].pending["ingress"] = 161; return s },
		"at 5s 161 events are emitted and not accepted":    func(s []sample) []sample { s[0].emitted += 161; return s },
		"pending is not flat: 20.0 events on average in":   func(s []sample) []sample { s[3].pending["archive"] = 110; s[4].pending["archive"] = 110; return s },
		"1 samples are too few":                            func(s []sample) []sample { return s[:1] },
		"0 samples are too few to judge by":                func(s []sample) []sample { return nil },
		"at 15s 200 events are pending; want 160 at most":  func(s []sample) []sample { s[2].pending["ingress"] = 200; return s },
		"no row was deleted from batches from 10s to 15s":  func(s []sample) []sample { s[2].batches.deleted = s[1].batches.deleted; return s },
		"no row was inserted into batches from 20s to 25s": func(s []sample) []sample { s[4].batches.inserted = s[3].batches.inserted; return s },
	} {
		if err := judge(spoil(healthy(20, 6)), 20); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in: %v", want, err)
		}
	}
}

func TestPhaseThatCannotBeJudged(t *testing.T) {
	good := phase{workflows: 1, interval: time.Second, length: 20 * time.Second, sample: 5 * time.Second}
	if err := good.validate(); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(*phase){
		"workflows: 0":   func(p *phase) { p.workflows = 0 },
		"intervals":      func(p *phase) { p.interval = 0 },
		"sample: 2s":     func(p *phase) { p.sample, p.interval = 2*time.Second, time.Millisecond },
		"three times":    func(p *phase) { p.interval = 2 * time.Second },
		"for: 19s; want": func(p *phase) { p.length = 19 * time.Second },
	} {
		p := good
		change(&p)
		if err := p.validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestArguments(t *testing.T) {
	for _, args := range [][]string{
		{"--for", "1s"},
		{"--workflows", "1,x"},
		{"--workflows", ""},
		{"watch"},
		{"--nothing"},
		{"load", "--for", "1s"},
		{"load", "--workflows", "0"},
		{"load", "--first", "1ms", "--last", "2ms"},
		{"load", "now"},
	} {
		var out strings.Builder
		if err := run(t.Context(), args, &out); err == nil {
			t.Errorf("%v is taken", args)
		}
		if out.Len() > 0 {
			t.Errorf("%v starts something: %s", args, fmt.Sprintf("%.80s", out.String()))
		}
	}
}
