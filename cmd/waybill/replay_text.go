package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/waybillhq/waybill/internal/cli"
	"github.com/waybillhq/waybill/internal/replay"
)

// replayTypes is how many types a report for people names.
const replayTypes = 20

// replayReport is how a replay ended, as -o json prints it.
type replayReport struct {
	Name   string  `json:"name"`
	Sink   string  `json:"sink"`
	Target string  `json:"target,omitempty"`
	DryRun bool    `json:"dry_run"`
	Took   float64 `json:"took_seconds"`
	replay.Result
}

// verdict is nil if every event was delivered, or would be.
func (r replayReport) verdict() error {
	var faults []string
	if r.Refused > 0 {
		faults = append(faults, plural64(r.Refused, "event")+" refused")
	}
	if len(r.Missing) > 0 {
		faults = append(faults, "something is missing at the source")
	}
	if len(faults) == 0 {
		return nil
	}
	return cli.NegativeError{Err: errors.New("not everything was delivered: " + strings.Join(faults, "; "))}
}

// text is the report for people, each line with its end.
func (r replayReport) text() string {
	var b strings.Builder
	switch {
	case r.DryRun:
		fmt.Fprintf(&b, "%s would be delivered to %s, from the %s\n", plural64(r.Events, "event"), r.Sink, r.From)
	case r.Before:
		fmt.Fprintf(&b, "replay %s is done already: %s delivered to %s; give another name to do it again\n", r.Name, plural64(r.Events, "event"), r.Target)
	default:
		fmt.Fprintf(&b, "replay %s: %s delivered to %s, from the %s", r.Name, plural64(r.Events, "event"), r.Target, r.From)
		if r.Resumed > 0 {
			fmt.Fprintf(&b, ", %d of them before", r.Resumed)
		}
		fmt.Fprintf(&b, ", in %.1f s\n", r.Took)
		if r.Repeated > 0 {
			fmt.Fprintf(&b, "%d of %s had to be sent again: what they held may have come twice\n", r.Repeated, plural64(r.Requests, "request"))
		}
	}
	r.table(&b)
	for _, code := range slices.Sorted(maps.Keys(r.Refusals)) {
		fmt.Fprintf(&b, "refused with %s: %s\n", code, plural64(r.Refusals[code], "event"))
	}
	for _, e := range r.Examples {
		fmt.Fprintf(&b, "  %s %s %s: %s %s\n", e.Source, e.Type, e.ID, e.Code, oneLine(e.Reason))
	}
	for _, missing := range r.Missing {
		fmt.Fprintf(&b, "MISSING: %s\n", missing)
	}
	return b.String()
}

// table writes how many events there are of each lane and type.
func (r replayReport) table(w io.Writer) {
	if r.Events == 0 {
		return
	}
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(table, "lane\tevents") // Flush tells of failures to write, of which a buffer has none
	for _, lane := range slices.Sorted(maps.Keys(r.Lanes)) {
		_, _ = fmt.Fprintf(table, "%d\t%d\n", lane, r.Lanes[lane])
	}
	_ = table.Flush()
	_, _ = fmt.Fprintln(table, "type\tevents")
	types := slices.SortedFunc(maps.Keys(r.Types), func(a, b string) int {
		return cmp.Or(cmp.Compare(r.Types[b], r.Types[a]), cmp.Compare(a, b))
	})
	for _, typ := range types[:min(replayTypes, len(types))] {
		_, _ = fmt.Fprintf(table, "%s\t%d\n", oneLine(typ), r.Types[typ])
	}
	if more := len(types) - replayTypes; more > 0 {
		_, _ = fmt.Fprintf(table, "and %d more\n", more)
	}
	_ = table.Flush()
}

// plural64 is plural for counts of events.
func plural64(n int64, word string) string { return plural(int(n), word) }

// showReplay shows the progress until the function that it returns is called.
func showReplay(r *replay.Replay, screen *screen, dryRun bool) (stop func()) {
	done, shown := make(chan struct{}), make(chan struct{})
	began, first := time.Now(), -1.0
	go func() {
		defer close(shown)
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		for {
			select {
			case <-done:
				screen.end()
				return
			case <-tick.C:
				p := r.Progress()
				if first < 0 && p.Part > 0 {
					first = p.Part // a replay that is resumed does not begin at 0
				}
				screen.live(replayLine(p, first, time.Since(began), screen.terminal, dryRun))
			}
		}
	}()
	return func() { close(done); <-shown }
}

// barWidth is how many characters a bar has.
const barWidth = 30

// replayLine is one line on how far a replay is. first is the part that was read when it was looked at
// first.
func replayLine(p replay.Progress, first float64, took time.Duration, bar, dryRun bool) string {
	var b strings.Builder
	if bar {
		full := int(p.Part * barWidth)
		fmt.Fprintf(&b, "[%s%s] ", strings.Repeat("#", full), strings.Repeat(".", barWidth-full))
	}
	verb := "delivered"
	if dryRun {
		verb = "counted"
	}
	fmt.Fprintf(&b, "%3.0f %% read, %s %s", 100*p.Part, plural64(p.Events, "event"), verb)
	if p.Here > 0 {
		fmt.Fprintf(&b, ", %.0f a second", float64(p.Here)/took.Seconds())
	}
	if p.Refused > 0 {
		fmt.Fprintf(&b, ", %d refused", p.Refused)
	}
	if here := p.Part - max(first, 0); here > 0.01 && p.Part < 1 {
		fmt.Fprintf(&b, ", some %s left", time.Duration(float64(took)*(1-p.Part)/here).Round(time.Second))
	}
	if p.Trouble != "" {
		fmt.Fprintf(&b, "; tried again: %s", oneLine(p.Trouble))
	}
	return b.String()
}
