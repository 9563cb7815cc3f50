package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// logger prints lines with the time before them.
type logger struct{ w io.Writer }

func newLog(w io.Writer) *logger { return &logger{w} }

func (l *logger) say(format string, args ...any) {
	fmt.Fprintf(l.w, "%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}

// sample prints a sample, and what has changed since the one before.
func (l *logger) sample(now, before sample) {
	took := max((now.at - before.at).Seconds(), 0.001)
	events, batches := now.events.since(before.events), now.batches.since(before.batches)
	l.say("%6.1f s  emitted %6d  accepted %6d | events: inserted %6d (%+.1f/s)  deleted %6d (%+.1f/s) | batches: %+d %+d | pending: %s | endpoint %6d",
		now.at.Seconds(), now.emitted, now.accepted,
		now.events.inserted, float64(events.inserted)/took, now.events.deleted, -float64(events.deleted)/took,
		batches.inserted, -batches.deleted, pendingText(now.pending), now.received)
}

func pendingText(pending map[string]int64) string {
	if len(pending) == 0 {
		return "none"
	}
	var parts []string
	for _, sink := range slices.Sorted(maps.Keys(pending)) {
		parts = append(parts, fmt.Sprintf("%s %d", sink, pending[sink]))
	}
	return strings.Join(parts, ", ")
}
