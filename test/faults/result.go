package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/waybillhq/waybill/test/faults/audit"
)

// What must hold, beside what package audit looks for.
const (
	// maxRSS bounds the memory of each of Waybill's processes, bytes.
	maxRSS = 200 << 20
	// maxTakeover bounds how long the lanes of a dead forwarder may be without one.
	maxTakeover = 10 * time.Second
)

// result is what a run prints and stores.
type result struct {
	Seed      uint64         `json:"seed"`
	Condition string         `json:"condition"`
	For       float64        `json:"for_seconds"`
	Rate      float64        `json:"offered_per_second"`
	Schedule  []scheduleStep `json:"schedule"`
	audit.Report
	// Ways are the events by the way in.
	Ways map[string]wayIn `json:"ways"`
	// RetriedCalls are the calls that producers made again, and RetriedEvents the events in
	// them: each was told that it may be sent again, or was not answered.
	RetriedCalls  int64 `json:"retried_calls"`
	RetriedEvents int64 `json:"retried_events"`
	// OutboxCommitted and OutboxRolledBack count the transactions that emitted into the outbox. The events of the
	// former are among those that were offered.
	OutboxCommitted      int `json:"outbox_committed"`
	OutboxRolledBack     int `json:"outbox_rolled_back"`
	RetransmittedBatches int `json:"retransmitted_batches"`
	RetransmittedEvents  int `json:"retransmitted_events"`
	// SlowestStatement is what the slowest of Waybill's statements took, seconds, where that
	// is looked at; 0: less than 0.2.
	SlowestStatement float64 `json:"slowest_statement_seconds,omitempty"`
	// Rebalances are how long it took until new forwarders had their share of the lanes.
	Rebalances []rebalance `json:"rebalances,omitempty"`
	// RecoverSeconds is from the last fault's end until everything was settled; the load
	// goes on for some seconds of it.
	RecoverSeconds float64            `json:"recover_seconds"`
	Takeovers      []takeover         `json:"takeovers"`
	MaxRSS         map[string]float64 `json:"max_rss_mib"` // by kind of process
	Seconds        float64            `json:"seconds"`
	// Seen is what took place of the condition and the faults, where they can tell.
	Seen       []string `json:"seen,omitempty"`
	Violations []string `json:"violations"`
	Logs       string   `json:"logs,omitempty"`
}

// scheduleStep is a fault as it took place.
type scheduleStep struct {
	Fault    string  `json:"fault"`
	Target   string  `json:"target"`
	Injected float64 `json:"injected_seconds"`
	Healed   float64 `json:"healed_seconds"`
	Proof    string  `json:"proof,omitempty"` // of what it did
	// Hits is what the fault hit and how often, where it can tell: answers that were lost, by
	// what they answered, or a point at which a process died. Empty: it hit nothing.
	Hits map[string]int `json:"hits,omitzero"`
}

// judge makes the result.
func (t *trial) judge(e *evidence, settled error, recovery time.Duration) *result {
	r := &result{
		Seed: t.seed, Condition: t.under.name, For: t.settings.length.Seconds(), Rate: t.settings.rate,
		Report:               audit.Compare(e.Evidence),
		RetransmittedBatches: e.retransmittedBatches, RetransmittedEvents: e.retransmittedEvents,
		RecoverSeconds: recovery.Seconds(), MaxRSS: map[string]float64{}, Violations: []string{},
	}
	for _, p := range t.steps {
		r.Schedule = append(r.Schedule, scheduleStep{p.kind.name, p.on, p.injected.Seconds(), p.healed.Seconds(), p.proof, p.hits})
	}
	if settled != nil {
		r.violation("%v", settled)
	} else if e.left > 0 {
		r.violation("%d rows of events belong to no batch", e.left)
	}
	r.Violations = append(r.Violations, r.Report.Violations(e.Evidence)...)
	if e.archive != nil {
		r.violation("the archive cannot be read back: %v", e.archive)
	}
	for _, f := range t.faults {
		r.violation("the harness: %s", f)
	}
	t.judgeProofs(r)
	t.judgeRetransmits(r)
	t.system.watch.judge(r, t)
	if t.under.judge != nil {
		t.under.judge(t, r, e)
	}
	return r
}

// judgeOutbox wants what one session emitted to have its order. That what was rolled back is nowhere the audit
// wants: it is not among what was offered.
func (r *result) judgeOutbox(l *outboxLoad, e *evidence) {
	r.OutboxCommitted, r.OutboxRolledBack = l.committed, l.rolledBack
	wrong := l.misplaced(e.Sinks[archiveSink])
	if len(wrong) > 0 {
		r.violation("%d events of the outbox are out of the order of their session: %s", len(wrong), wrong[0])
	}
	if l.committed < outboxSessions || l.rolledBack < outboxSessions {
		r.violation("the outbox: %d transactions were committed and %d rolled back: there was no load", l.committed, l.rolledBack)
	}
}

func (r *result) violation(format string, args ...any) {
	r.Violations = append(r.Violations, fmt.Sprintf(format, args...))
}

func (r *result) seen(format string, args ...any) {
	r.Seen = append(r.Seen, fmt.Sprintf(format, args...))
}

// judgeProofs wants a fault that was asked for by name to have taken place; one that was drawn
// may have met another that was in its way.
func (t *trial) judgeProofs(r *result) {
	did := map[string]bool{}
	for _, p := range t.steps {
		if p.proof != "" {
			r.seen("%s %s: %s", p.kind.name, p.on, p.proof)
			did[p.kind.name] = did[p.kind.name] || !p.idle
		}
	}
	for _, name := range t.settings.faults {
		if took, tells := did[name]; tells && !took {
			r.violation("the harness: %s did not take place", name)
		}
	}
}

// judgeRetransmits compares the retransmits with what the faults may lead to.
func (t *trial) judgeRetransmits(r *result) {
	explained := t.under.effect.retransmits || slices.ContainsFunc(t.steps, func(p *played) bool { return p.kind.effect.retransmits })
	if r.RetransmittedBatches > 0 && !explained {
		r.violation("%d batches were retransmitted, and no fault took any out of the queue", r.RetransmittedBatches)
	}
}

// judge adds what was seen of the processes to a result.
func (w *watch) judge(r *result, t *trial) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r.Violations = append(r.Violations, w.problems...)
	for name, bytes := range w.rss {
		kind := kindOf(name)
		r.MaxRSS[kind] = max(r.MaxRSS[kind], float64(bytes)/(1<<20))
		if slices.Contains(processes, name) && bytes > maxRSS {
			r.violation("%s had %.0f MiB resident; the limit is %d", name, float64(bytes)/(1<<20), maxRSS>>20)
		}
	}
	r.Takeovers = append([]takeover{}, w.takeovers...)
	r.Rebalances = w.rebalances
	for _, o := range w.rebalances {
		if o.Seconds > t.maxTakeover().Seconds() && t.aloneOnLeases("forwarders", o.since) {
			r.violation("the lanes were spread over %d forwarders after %.1f s", o.Forwarders, o.Seconds)
		}
	}
	for _, o := range w.takeovers {
		if o.Seconds > t.maxTakeover().Seconds() && t.aloneOnLeases(o.Forwarder, o.since) {
			r.violation("the %d lanes of %s were taken over after %.1f s", o.Lanes, o.Forwarder, o.Seconds)
		}
	}
	for _, o := range w.orphans {
		if t.aloneOnLeases(o.forwarder, o.since) {
			r.violation("the lanes of %s, which died, were not all taken over", o.forwarder)
		}
	}
}

func (t *trial) maxTakeover() time.Duration { return time.Duration(t.settings.slack) * maxTakeover }

// aloneOnLeases reports whether nothing but a forwarder's death kept lanes from moving.
func (t *trial) aloneOnLeases(forwarder string, since time.Time) bool {
	if t.under.effect.leases {
		return false
	}
	died := since.Sub(t.loaded)
	for _, p := range t.steps {
		overlaps := p.injected <= died+t.maxTakeover() && p.healed+t.maxTakeover() >= died
		if p.kind.effect.leases && p.on != forwarder && overlaps {
			return false
		}
	}
	return true
}

func (r *result) save(dir string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the result: %w", err)
	}
	path := filepath.Join(dir, fmt.Sprintf("seed-%d.json", r.Seed))
	if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("store the result: %w", err)
	}
	return nil
}

func (r *result) print(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "  offered %d, acknowledged %d (sent again: %d, in %d calls), unknown outcomes %d, stored %d; retransmitted %d batches of %d events\n",
		r.Offered, r.Acknowledged, r.RetriedEvents, r.RetriedCalls, r.Unknown, r.Stored, r.RetransmittedBatches, r.RetransmittedEvents)
	table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "  sink\tdelivered\tlost\tgaps\tdoubled\tunexplained\tout of order\tunexplained\tdead letters\t")
	for _, name := range slices.Sorted(maps.Keys(r.Sinks)) {
		s := r.Sinks[name]
		fmt.Fprintf(table, "  %s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%s\t\n", name, s.Delivered, s.Lost, s.Gaps, s.Doubled, s.DoubledOutside, s.OutOfOrder, s.Unexplained, counts(s.DeadLetters))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if err := r.printWays(&b); err != nil {
		return err
	}
	fmt.Fprintf(&b, "  recovered %.1f s after the last fault; most memory, MiB:", r.RecoverSeconds)
	for _, kind := range slices.Sorted(maps.Keys(r.MaxRSS)) {
		fmt.Fprintf(&b, " %s %.0f", kind, r.MaxRSS[kind])
	}
	for _, o := range r.Takeovers {
		fmt.Fprintf(&b, "; %d lanes of %s taken over in %.1f s", o.Lanes, o.Forwarder, o.Seconds)
	}
	for _, o := range r.Rebalances {
		fmt.Fprintf(&b, "; %d forwarders had their lanes in %.1f s", o.Forwarders, o.Seconds)
	}
	fmt.Fprintln(&b)
	for _, what := range r.Seen {
		fmt.Fprintf(&b, "  %s\n", what)
	}
	r.printVerdict(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *result) printVerdict(b *strings.Builder) {
	if len(r.Violations) == 0 {
		fmt.Fprintf(b, "seed %d: passed in %.1f s\n\n", r.Seed, r.Seconds)
		return
	}
	for _, v := range r.Violations {
		fmt.Fprintf(b, "  VIOLATION: %s\n", v)
	}
	for _, e := range r.Examples {
		fmt.Fprintf(b, "    %s\n", e)
	}
	fmt.Fprintf(b, "seed %d: FAILED in %.1f s; its logs are in %s\n\n", r.Seed, r.Seconds, r.Logs)
}

func counts(byCode map[string]int) string {
	if len(byCode) == 0 {
		return "0"
	}
	var parts []string
	for _, code := range slices.Sorted(maps.Keys(byCode)) {
		parts = append(parts, fmt.Sprintf("%d %s", byCode[code], code))
	}
	return strings.Join(parts, ", ")
}
