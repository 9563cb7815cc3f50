package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/waybillhq/waybill/internal/roundtrip"
	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/test/faults/audit"
)

// A run shows what became of the events of each way in, and fails when one of them was not tried.
func TestEachWayInIsJudged(t *testing.T) {
	load := roundtrip.DefaultSenderConfig([]string{"a", "b"}, []string{"a", "b"})
	load.Emitters = []*pipeline.Emitter{nil}
	e := &evidence{Evidence: audit.Evidence{Archive: archiveSink, Sinks: map[string][]roundtrip.Delivery{}}}
	offered := map[string]int{}
	add := func(source string) {
		id := fmt.Sprint(len(e.Sent))
		e.Sent = append(e.Sent, roundtrip.Entry{Source: source, Type: "t", ID: id, Accepted: true})
		e.Heads = append(e.Heads, audit.Head{Source: source, Type: "t", Seqnum: 1})
		offered[wayInOf(load, source, "t")]++
		if source != "/outbox/x/1" { // which is lost
			e.Sinks[archiveSink] = append(e.Sinks[archiveSink], roundtrip.Delivery{Source: source, Type: "t", ID: id, Seqnum: 1})
		}
	}
	for i := range 30 {
		add(fmt.Sprint("/load/", i))
	}
	var without result
	without.judgeWays(load, e)
	if len(without.Violations) != 1 || !strings.Contains(without.Violations[0], wayOutbox) {
		t.Errorf("without an outbox: %q", without.Violations)
	}
	add("/outbox/x/0")
	add("/outbox/x/1")
	var r result
	r.judgeWays(load, e)
	if len(r.Violations) > 0 || offered[wayEmitter] == 0 || offered[wayIngest] == 0 {
		t.Errorf("%q, of %v", r.Violations, offered)
	}
	for _, way := range waysIn {
		if in := r.Ways[way]; in.Acknowledged != offered[way] || (in.Lost == 1) != (way == wayOutbox) {
			t.Errorf("%s: %+v, offered %d", way, in, offered[way])
		}
	}
}
