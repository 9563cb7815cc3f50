package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/waybillhq/waybill/internal/roundtrip"
	"github.com/waybillhq/waybill/test/faults/audit"
)

// Ways into the pipeline.
const (
	wayIngest  = "ingest"
	wayEmitter = "emitter"
	wayOutbox  = "outbox"
)

// waysIn are all of them.
var waysIn = []string{wayIngest, wayEmitter, wayOutbox}

// wayInOf is the way by which the events of a key come in.
func wayInOf(load roundtrip.SenderConfig, source, typ string) string {
	switch {
	case strings.HasPrefix(source, outboxSources):
		return wayOutbox
	case load.ByEmitter(source, typ):
		return wayEmitter
	}
	return wayIngest
}

// wayIn is what became of the events that came in by one way.
type wayIn struct {
	Acknowledged int `json:"acknowledged"`
	Unknown      int `json:"unknown_outcomes"`
	StoredAgain  int `json:"stored_again"`
	Forks        int `json:"forks"`
	// Of all sinks together.
	Lost int `json:"lost"`
	Gaps int `json:"gaps"`
	// Of the archive, and of the other sinks.
	TwiceInArchive int `json:"twice_in_archive"`
	Twice          int `json:"twice_unexplained"`
	OutOfOrder     int `json:"out_of_order_unexplained"`
}

// judgeWays shows what became of the events of each way in. That nothing must be lost, double or out of order the audit of all
// events wants; here each way must have been tried.
func (r *result) judgeWays(load roundtrip.SenderConfig, e *evidence) {
	r.Ways = map[string]wayIn{}
	for _, way := range waysIn {
		report := audit.Compare(e.Of(func(source, typ string) bool { return wayInOf(load, source, typ) == way }))
		in := wayIn{Acknowledged: report.Acknowledged, Unknown: report.Unknown, StoredAgain: report.StoredAgain, Forks: report.Forks}
		for name, sink := range report.Sinks {
			in.Lost += sink.Lost
			in.Gaps += sink.Gaps
			in.OutOfOrder += sink.Unexplained
			if name == archiveSink {
				in.TwiceInArchive += sink.Doubled
			} else {
				in.Twice += sink.DoubledOutside
			}
		}
		r.Ways[way] = in
		if in.Acknowledged == 0 {
			r.violation("no event came in by the %s: nothing was tried of it", way)
		}
	}
}

func (r *result) printWays(b *strings.Builder) error {
	table := tabwriter.NewWriter(b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "  way in\tacknowledged\tunknown\tlost\tgaps\tforks\tstored again\ttwice in the archive\ttwice, unexplained\tout of order, unexplained\t")
	for _, way := range slices.Sorted(maps.Keys(r.Ways)) {
		w := r.Ways[way]
		fmt.Fprintf(table, "  %s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t\n", way, w.Acknowledged, w.Unknown, w.Lost, w.Gaps, w.Forks, w.StoredAgain,
			w.TwiceInArchive, w.Twice, w.OutOfOrder)
	}
	return table.Flush()
}
