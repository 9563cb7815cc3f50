package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/waybillhq/waybill/pipeline"
)

func TestSpreadWantsAShareForEach(t *testing.T) {
	lanes := func(owners ...string) map[pipeline.SinkLane]pipeline.LeaseHolder {
		holders := map[pipeline.SinkLane]pipeline.LeaseHolder{}
		for _, sink := range []string{ingressSink, archiveSink} {
			for lane, owner := range owners {
				if owner != "" {
					holders[pipeline.SinkLane{Sink: sink, Lane: lane}] = pipeline.LeaseHolder{Forwarder: owner}
				}
			}
		}
		return holders
	}
	for _, test := range []struct {
		owners []string
		want   string // part of the error; empty: none
	}{
		{[]string{"a", "b", "a"}, ""},
		{[]string{"a", "a", "a"}, "its share is 2"},
		{[]string{"a", "b", ""}, "2 lanes of"},
		{[]string{"a", "b", "stranger"}, "2 lanes of"},
	} {
		err := spread(lanes(test.owners...), 3, []string{"a", "b"})
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v: %v, want %q", test.owners, err, test.want)
		}
	}
}

func TestSlowestStatementIsFound(t *testing.T) {
	log := []byte(`x [waybill] LOG:  duration: 300.1 ms  statement: a
x [psql] LOG:  duration: 90000.1 ms  statement: b
x [waybill] LOG:  duration: 4000.9 ms  execute c
`)
	if ms, line := slowest(log); ms != 4000 || !strings.Contains(line, "execute c") {
		t.Error(fmt.Sprint(ms, " ", line))
	}
}

// What cannot be retransmitted under a quiet condition must be due to a loss, so no fault that
// may take batches out of the queue takes place.
func TestQuietConditionsAllowNothingThatLeadsToRetransmits(t *testing.T) {
	for _, c := range conditions() {
		if !c.quiet {
			continue
		}
		for _, k := range c.allows(kinds()) {
			if k.effect.retransmits {
				t.Errorf("%s allows %s", c.name, k.name)
			}
		}
	}
}
