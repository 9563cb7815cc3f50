package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/waybillhq/waybill/internal/collector"
	"github.com/waybillhq/waybill/internal/journey"
)

// barCells is how wide the picture of an event's time is.
const barCells = 32

// frame is the time that the picture shows: from the first beginning of an event's own spans to
// their last end.
type frame struct {
	start time.Time
	took  time.Duration
}

func frameOf(e *journey.Event) frame {
	f := frame{start: e.Spans[0].Start} // they are sorted
	for i := range e.Spans {
		f.took = max(f.took, e.Spans[i].End.Sub(f.start))
	}
	return f
}

func (f frame) share(d time.Duration) float64 {
	if f.took == 0 {
		return 0
	}
	return float64(d) / float64(f.took)
}

// bar draws a length of time: a full block where it has most of a cell, and a thin one where it
// would not be seen otherwise.
func (f frame) bar(start time.Time, took time.Duration) string {
	at := func(t time.Time) int {
		return int(min(max(f.share(t.Sub(f.start)), 0), 1)*barCells + 0.5)
	}
	from, to := at(start), at(start.Add(took))
	if from == to {
		from = min(from, barCells-1)
		return pad(strings.Repeat(" ", from)+"▏", barCells)
	}
	return pad(strings.Repeat(" ", from)+strings.Repeat("█", to-from), barCells)
}

func pad(text string, cells int) string {
	return text + strings.Repeat(" ", max(0, cells-len([]rune(text))))
}

// shareOf is what part of the way to the sink's answer a stage takes; it reports false of what
// comes behind, or where there was none.
func shareOf(d *journey.Delivery, s journey.Stage) (float64, bool) {
	total, known := d.Took(journey.Send)
	if !known || total == 0 || s.Name == journey.Receipt || s.Name == journey.Settle {
		return 0, false
	}
	return float64(s.Took) / float64(total), true
}

// stageWords say what the stages are.
var stageWords = map[string]string{
	journey.Wait: "for a transaction", journey.Commit: "the transaction in Postgres",
	journey.Publish: "until JetStream has the batch", journey.Retransmit: "until a janitor has published it again",
	journey.Queue: "until a forwarder has it", journey.Gather: "until the request: company, a slot, earlier tries",
	journey.Send: "the request to the sink", journey.Receipt: "until the receipt is stored", journey.Settle: "until that is settled in Postgres",
}

// writeEvent draws an event's spans, and its way to each sink.
func writeEvent(w io.Writer, e *journey.Event) error {
	f := frameOf(e)
	out := &strings.Builder{}
	fmt.Fprintf(out, "event %s, source %s, type %s", oneLine(e.ID), oneLine(e.Source), oneLine(e.Type))
	if e.Correlation != e.ID {
		fmt.Fprintf(out, ", correlation id %s", oneLine(e.Correlation))
	}
	fmt.Fprintf(out, "\ntrace %s: %s in %s from %s on\n\n", e.TraceID, plural(len(e.Spans), "span"), strings.TrimSpace(showLength(f.took)), showTime(f.start))
	writeWaterfall(out, f, e)
	for _, d := range e.Deliveries() {
		writeDelivery(out, f, &d)
	}
	writeRemarks(out, e)
	_, err := io.WriteString(w, out.String())
	return err
}

// waterfallRow is a line of the picture.
type waterfallRow struct {
	span    *collector.Span
	depth   int
	foreign bool
}

// waterfall are the spans with each one's children behind it, by their beginning.
func waterfall(e *journey.Event) (rows []waterfallRow) {
	var all []waterfallRow
	known := map[string]bool{}
	add := func(spans []collector.Span, foreign bool) {
		for i := range spans {
			known[spans[i].ID] = true
			all = append(all, waterfallRow{span: &spans[i], foreign: foreign})
		}
	}
	add(e.Above, true)
	add(e.Spans, false)
	placed := map[string]bool{} // a parent that is its own child ends nothing but its own line
	var place func(parent string, depth int)
	place = func(parent string, depth int) {
		for _, row := range all {
			if of := row.span.Parent; (parent == "" && !known[of] || parent != "" && of == parent) && !placed[row.span.ID] {
				placed[row.span.ID] = true
				row.depth = depth
				rows = append(rows, row)
				place(row.span.ID, depth+1)
			}
		}
	}
	place("", 0)
	return rows
}

func writeWaterfall(out *strings.Builder, f frame, e *journey.Event) {
	rows := waterfall(e)
	name, process := len("span"), len("process")
	for _, row := range rows {
		name = max(name, 2*row.depth+len([]rune(oneLine(row.span.Name))))
		process = max(process, len([]rune(processOf(row.span))))
	}
	fmt.Fprintf(out, "%s  %s  %12s  %12s  %7s\n", pad("span", name), pad("process", process), "offset", "length", "share")
	for _, row := range rows {
		s := row.span
		share := ""
		if !row.foreign {
			share = percent(f.share(s.Took()))
		}
		line := fmt.Sprintf("%s  %s  %12s  %12s  %7s  %s  %s",
			pad(strings.Repeat("  ", row.depth)+oneLine(s.Name), name), pad(processOf(s), process),
			showLength(s.Start.Sub(f.start)), showLength(s.Took()), share, f.bar(s.Start, s.Took()), detail(s))
		out.WriteString(strings.TrimRight(line, " ") + "\n")
	}
}

// processOf names who made a span.
func processOf(s *collector.Span) string { return oneLine(cmp.Or(s.Instance, s.Service, "?")) }

// usual are outcomes that need no word; a transaction that failed says why.
var usual = []string{"delivered", "stored", "failed"}

// detail is what else a span says that matters to a reader.
func detail(s *collector.Span) string {
	a := s.Attributes
	var parts []string
	if code := a["waybill.refusal.code"]; code != "" {
		parts = append(parts, cmp.Or(a["waybill.outcome"], "refused")+" ("+code+")")
	} else if outcome := a["waybill.outcome"]; outcome != "" && !slices.Contains(usual, outcome) {
		parts = append(parts, outcome)
	}
	if s.Failure != "" && !slices.Contains(parts, s.Failure) && a["waybill.refusal.code"] == "" {
		parts = append(parts, "FAILED: "+s.Failure)
	}
	if attempt := a["waybill.attempt"]; attempt != "" && attempt != "0" && a["messaging.operation.name"] == "publish" {
		parts = append(parts, "retransmit "+attempt)
	}
	if n := a["messaging.batch.message_count"]; n != "" && n != "1" {
		parts = append(parts, "of "+n+" events")
	}
	if front := a["waybill.front"]; front != "" {
		parts = append(parts, "over "+front)
	}
	if lane := a["messaging.destination.partition.id"]; lane != "" && a["messaging.operation.name"] == "publish" {
		parts = append(parts, "lane "+lane+", batch "+a["waybill.batch"])
	}
	return oneLine(strings.Join(parts, ", "))
}

func writeDelivery(out *strings.Builder, f frame, d *journey.Delivery) {
	fmt.Fprintf(out, "\nto %s: %s\n", oneLine(d.Sink), deliveryWords(d))
	for _, s := range d.Stages {
		share := ""
		if part, ok := shareOf(d, s); ok {
			share = percent(part)
		}
		fmt.Fprintf(out, "  %-10s  %12s  %12s  %7s  %s  %s\n", s.Name, showLength(s.Start.Sub(f.start)), showLength(s.Took), share,
			f.bar(s.Start, s.Took), stageWords[s.Name])
	}
}

// deliveryWords are the end of a way in a few words.
func deliveryWords(d *journey.Delivery) string {
	text := d.Outcome
	switch d.Outcome {
	case "":
		text = "no answer of the sink is known"
	case "not taken":
		text = "not taken so far"
	}
	if d.Code != "" {
		text += " (" + oneLine(d.Code) + ")"
	}
	if took, known := d.Took(journey.Send); known {
		text += " after " + strings.TrimSpace(showLength(took))
	}
	if d.Tries > 1 {
		text += fmt.Sprintf(", sent %d times", d.Tries)
	}
	if d.Processed > 1 {
		text += fmt.Sprintf(", with a forwarder %d times", d.Processed)
	}
	if took, known := d.Took(journey.Settle); known {
		return text + ", settled after " + strings.TrimSpace(showLength(took))
	}
	if d.Settled {
		return text + ", settled"
	}
	return text + ", not settled as far as is known"
}

// othersShown bounds how many further events of a trace are named.
const othersShown = 5

func writeRemarks(out *strings.Builder, e *journey.Event) {
	if why := e.NotStored(); why != "" {
		fmt.Fprintf(out, "\nnot stored by this trace's requests: %s\n", why)
	}
	if missing := e.Missing(); len(missing) > 0 {
		fmt.Fprintf(out, "\nincomplete: there is no span of %s. That has not happened yet (`waybill status` shows what waits); or the span is on its way (a process sends every 5 s unless OTEL_BSP_SCHEDULE_DELAY says otherwise); or it was dropped, or lost with a process that was killed\n",
			strings.Join(missing, ", "))
	}
	if others := e.Others(); len(others) > 0 {
		n := len(others)
		var names []string
		for _, o := range others[:min(n, othersShown)] {
			names = append(names, oneLine(o.ID)+" of "+oneLine(o.Source))
		}
		if n > othersShown {
			names = append(names, "…")
		}
		fmt.Fprintf(out, "\n%s in the same trace, not shown: %s\n", plural(n, "further event"), strings.Join(names, ", "))
	}
	if e.Foreign > 0 {
		fmt.Fprintf(out, "\n%s of other programs in the same trace, not shown\n", plural(e.Foreign, "span"))
	}
}

// listEvents lists several events, and says how one is shown.
func listEvents(w io.Writer, events []*journey.Event) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "began\ttook\tid\tsource\ttype\ttrace\tsinks") // Flush tells
	for _, e := range events {
		f := frameOf(e)
		var sinks []string
		for _, d := range e.Deliveries() {
			sinks = append(sinks, oneLine(d.Sink)+" "+cmp.Or(d.Outcome, "?"))
		}
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", showTime(f.start), strings.TrimSpace(showLength(f.took)),
			oneLine(e.ID), oneLine(e.Source), oneLine(e.Type), e.TraceID, cmp.Or(strings.Join(sinks, ", "), "-"))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%s match. Give the id of one, with --source or --trace-id where that is not enough; --all shows each\n", plural(len(events), "event"))
	return err
}

// showLength is a length of time, aligned at the right: milliseconds up to a second, seconds up to
// a minute.
func showLength(d time.Duration) string {
	switch size := d.Abs(); {
	case size < time.Second:
		return fmt.Sprintf("%.2f ms", 1000*inSeconds(d))
	case size < time.Minute:
		return fmt.Sprintf("%.2f s ", d.Seconds())
	default:
		return d.Round(time.Second).String() + "   "
	}
}

func percent(part float64) string { return fmt.Sprintf("%.1f %%", 100*part) }
