package main

import (
	"math"
	"strings"
	"testing"
	"time"
)

// phaseOf makes a phase of calls that were due a second apart, and taken by both sinks after
// the given times from when each was due.
func phaseOf(m *measurement, began time.Time, takenAfter []time.Duration) *phase {
	p := &phase{first: len(m.load.calls), taken: map[string]*taken{}}
	t := &taken{}
	for i, after := range takenAfter {
		due := began.Add(time.Duration(i) * time.Second)
		m.load.calls = append(m.load.calls, isolationCall{due: due, answered: due, accepted: true})
		for range callEvents {
			t.at = append(t.at, due.Add(after))
		}
	}
	p.past = len(m.load.calls)
	p.taken[ingressSink], p.taken[archiveSink] = t, t
	return p
}

func TestFiguresOfAnOutage(t *testing.T) {
	m := &measurement{isolation: isolation{down: ingressSink}, load: &load{}}
	began := time.Unix(1_700_000_000, 0)
	// Back after 4 s: four calls wait, and are taken at 5 s, 6 s, 7 s and 8 s.
	p := phaseOf(m, began, []time.Duration{5 * time.Second, 5 * time.Second, 5 * time.Second, 5 * time.Second, 0, 0})
	p.up = began.Add(4*time.Second - time.Nanosecond)
	d := m.drained(p)
	if d.Backlog != 4*callEvents {
		t.Errorf("the backlog is %d", d.Backlog)
	}
	// The call that was due at 4 s was the first that was taken, then one came with each of the
	// backlog's.
	if math.Abs(d.Seconds-4) > 0.001 || math.Abs(d.PerSecond-5*callEvents/4.0) > 0.001 {
		t.Errorf("%+v", d)
	}
	f := m.figures(p, began, began.Add(4*time.Second))
	if f.P50 != 5000 || f.P99 != 5000 || f.PerSecond != 0 {
		t.Errorf("%+v", f)
	}
}

func TestIsolationIsJudged(t *testing.T) {
	good := func() *isolationResult {
		pair := &isolationPair{
			Well: figures{PerSecond: 1000, P50: 10, P99: 20}, Ill: figures{PerSecond: 950, P50: 10.5, P99: 21},
			Drain: drain{PerSecond: 5000},
		}
		return &isolationResult{Down: ingressSink, Measured: archiveSink, Peak: map[string]float64{ingressSink: 6000}, Pairs: []*isolationPair{pair}}
	}
	r := good()
	if r.judge(); len(r.Violations) > 0 {
		t.Errorf("violations of what is well: %v", r.Violations)
	}
	for want, spoil := range map[string]func(r *isolationResult){
		"of its events a second":    func(r *isolationResult) { r.Pairs[0].Ill.PerSecond = 890 },
		"median latency":            func(r *isolationResult) { r.Pairs[0].Ill.P50 = 11.1 },
		"drained at":                func(r *isolationResult) { r.Pairs[0].Drain.PerSecond = 4700 },
		"1 batches were retransmit": func(r *isolationResult) { r.Retransmits = 1 },
	} {
		r := good()
		spoil(r)
		if r.judge(); len(r.Violations) != 1 || !strings.Contains(r.Violations[0], want) {
			t.Errorf("%s: %v", want, r.Violations)
		}
	}
}

func TestEventIDsOfTheLoad(t *testing.T) {
	if call, index, err := parseEventID("12-99"); call != 12 || index != 99 || err != nil {
		t.Error(call, index, err)
	}
	for _, id := range []string{"", "1", "1-", "a-1", "1-100", "-1-1"} {
		if _, _, err := parseEventID(id); err == nil {
			t.Errorf("%q passes", id)
		}
	}
}

func TestIsolationFlagsAreChecked(t *testing.T) {
	for _, bad := range []string{"--down=s3", "--pairs=0", "--settle=10ms", "--for=2s", "--rate=1", "--peak=1s"} {
		if _, err := isolationFlags([]string{bad}); err == nil || !strings.Contains(err.Error(), "want") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
