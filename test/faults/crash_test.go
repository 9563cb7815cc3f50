package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/waybillhq/waybill/internal/devrun"
	"github.com/waybillhq/waybill/internal/producer"
	"github.com/waybillhq/waybill/internal/roundtrip"
	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/pipeline/failpoint"
	"github.com/waybillhq/waybill/test/faults/audit"
)

// crashes is a system and the cases that it goes through.
type crashes struct {
	*system
	t *testing.T

	binary string

	one    crash                        // the case
	ctx    context.Context              // of the case
	run    string                       // of the case, a part of its events' sources
	sent   map[string][]roundtrip.Entry // by run
	commit func() error                 // of a transaction that the case holds
}

// atOnceCrashing is how many systems go through their cases at once: most of the time is
// waiting, for leases and for what must come again.
const atOnceCrashing = 6

func TestCrashAtEveryPoint(t *testing.T) {
	binary, err := build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var running errgroup.Group
	running.SetLimit(atOnceCrashing)
	for _, group := range crashGroups() {
		running.Go(func() error {
			t.Run(group.name, func(t *testing.T) { group.run(t, binary) })
			return nil
		})
	}
	_ = running.Wait() // the tests tell
}

func TestEveryPointHasItsCase(t *testing.T) {
	has := map[[2]string]bool{}
	for _, group := range crashGroups() {
		for _, one := range group.cases {
			has[[2]string{one.point, one.action}] = true
		}
	}
	for _, p := range failPoints() {
		if !has[[2]string{p.name, failpoint.Kill}] {
			t.Errorf("no process dies at %s", p.name)
		}
		if p.loses && !has[[2]string{p.name, failpoint.Lose}] {
			t.Errorf("no answer is lost at %s", p.name)
		}
	}
}

func (g *crashGroup) run(t *testing.T, binary string) {
	s, err := startSystem(t.Context(), 0, binary, []setup{g.setup})
	if err != nil {
		t.Error(err)
		return
	}
	c := &crashes{system: s, t: t, binary: binary, sent: map[string][]roundtrip.Entry{}}
	defer func() {
		if err := errors.Join(s.stop(), s.remove()); err != nil {
			t.Error(err)
		}
	}()
	if g.behaviour != "" {
		if err := s.behave(t.Context(), g.behaviour); err != nil {
			t.Error(err)
			return
		}
	}
	for i, one := range g.cases {
		began := time.Now()
		c.run, c.one = runName(i), one
		if err := c.play(g.together); err != nil {
			t.Errorf("%v: %v", one, err)
			break
		}
		t.Logf("%v: %.1f s", one, time.Since(began).Seconds())
	}
	if err := c.settled(t.Context()); err != nil {
		t.Error(err)
	}
	c.judge(g)
	if t.Failed() {
		showLogs(t, s.dir)
	}
}

// setup makes a small system that recovers soon.
func (g *crashGroup) setup(c *devrun.Config, _ *system) error {
	c.Ingests, c.Forwarders, c.Janitors, c.Lanes = 1, 1, 1, 4
	c.Grace, c.Queue.LeaseTTL, c.RestartPause = crashGrace, 2*time.Second, 100*time.Millisecond
	c.Via = nil
	if g.patient {
		c.Grace = pipeline.DefaultGrace
	}
	if g.forgetful {
		c.DedupeWindow = 0
	}
	if g.queueBytes > 0 {
		c.Queue.MaxBytes = g.queueBytes
	}
	c.Env = append(append(c.Env, "WAYBILL_RETRANSMIT_EVERY=500ms"), g.env...)
	return nil
}

// crashGrace leaves a publish time enough on a loaded machine, and is waited out by the cases
// that have something published again.
const crashGrace = 3 * time.Second

func runName(i int) string { return fmt.Sprintf("%02d", i) }

// process is the name of the one that comes to the point.
func (c crash) process() string {
	kind, _, _ := strings.Cut(c.point, "/")
	return kind + "-1"
}

// play goes through one case: something is sent, the process comes to the point, what was
// sent is answered, something else is sent, and, unless that is for the end of all cases,
// everything is settled.
func (c *crashes) play(together bool) (err error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), caseLimit)
	defer cancel()
	c.ctx = ctx
	one, name := c.one, c.one.process()
	if err := call(one.prepare, c); err != nil {
		return err
	}
	ends := c.watch.ends(name)
	if err := c.arm(name, one.point, one.action, max(one.nth, 1)); err != nil {
		return err
	}
	var sending errgroup.Group
	defer func() { cancel(); _ = sending.Wait() }() // an error is returned below
	if err := call(one.provoke, c); err != nil {
		return err
	}
	sending.Go(func() error { return c.send(max(one.events, few), smallData) })
	if err := c.await("the point is reached", func() bool { return c.struck(name) }); err != nil {
		_, again := c.disarm(name)
		return errors.Join(err, again)
	}
	if one.action == failpoint.Kill && !one.unsupervised {
		ends++
	}
	ends += one.restarts
	if err := c.await(name+" has died and runs again", func() bool { return c.watch.ends(name) == ends && c.watch.runs(name) }); err != nil {
		return err
	}
	if _, err := c.disarm(name); err != nil {
		return err
	}
	if err := call(one.after, c); err != nil {
		return err
	}
	if err := sending.Wait(); err != nil {
		return err
	}
	if err := c.send(few, smallData); err != nil || together {
		return err
	}
	return c.settled(ctx)
}

func call(hook func(c *crashes) error, c *crashes) error {
	if hook == nil {
		return nil
	}
	return hook(c)
}

// await waits until something is so.
func (c *crashes) await(what string, is func() bool) error {
	return poll(c.ctx, caseLimit, what, func(context.Context) error {
		if !is() {
			return errors.New("it is not so")
		}
		return nil
	})
}

// caseLimit bounds a case: seconds, and on a loaded machine many.
const caseLimit = 3 * time.Minute

// Sizes of the data of an event.
const smallData, largeData = 100, 900_000

// send sends events of the case's key in one call, again until they are accepted.
func (c *crashes) send(n, size int) error {
	sender, err := producer.NewHTTP(c.stack.HTTP[0], false)
	if err != nil {
		return err
	}
	defer sender.Close()
	run, typ := c.run, "crash"
	if c.one.typ != "" {
		typ = c.one.typ
	}
	events := make([]*pb.CloudEvent, n)
	entries := make([]roundtrip.Entry, n)
	for i := range events {
		id := fmt.Sprintf("%s-%d", run, len(c.sent[run])+i)
		data := bytes.Repeat([]byte(id), size/len(id))
		events[i] = &pb.CloudEvent{
			Source: crashSource(run), Type: typ, Id: id, SpecVersion: "1.0", Data: &pb.CloudEvent_BinaryData{BinaryData: data},
		}
		entries[i] = roundtrip.Entry{
			Source: crashSource(run), Type: typ, ID: id, DataCRC32C: crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)),
		}
	}
	for i, outcome := range producer.SendUntil(c.ctx, sender, events, caseLimit, nil) {
		entries[i].Accepted, entries[i].Unknown, entries[i].Err = outcome.Err == nil, outcome.Unknown, outcome.Err
	}
	c.sent[run] = append(c.sent[run], entries...)
	return c.ctx.Err()
}

func crashSource(run string) string { return "/crash/" + run }

// settled waits until no batch waits for a sink.
func (c *crashes) settled(ctx context.Context) error {
	return poll(ctx, caseLimit, "everything is settled", func(ctx context.Context) error {
		conn, err := pgx.Connect(ctx, c.stack.DatabaseURL)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close(ctx) }() // it only reads
		var waiting int
		err = conn.QueryRow(ctx, `SELECT (SELECT count(*) FROM waybill.batches) + (SELECT count(*) FROM waybill.outbox)`).Scan(&waiting)
		if err == nil && waiting > 0 {
			err = fmt.Errorf("%d batches, or rows of the outbox, wait", waiting)
		}
		return err
	})
}

// judge audits what became of the events of each case, and of the archive as a whole.
func (c *crashes) judge(g *crashGroup) {
	c.t.Helper()
	trial := &trial{under: &condition{}, system: c.system}
	e, err := trial.gather(c.t.Context(), new(roundtrip.Ledger))
	if err != nil {
		c.t.Error(err)
		return
	}
	e.Forgets = g.forgetful
	if e.archive != nil || e.left != 0 {
		c.t.Errorf("the archive cannot be read (%v), or %d rows of events are left", e.archive, e.left)
	}
	if g.patient && e.retransmittedBatches > 0 {
		c.t.Errorf("%d batches were published again, and none fell out of the queue", e.retransmittedBatches)
	}
	if holes := audit.Compare(e.Evidence).Sinks[archiveSink].Holes; holes > 0 {
		c.t.Errorf("the offsets of the archive have %d holes", holes)
	}
	for i, one := range g.cases {
		part := c.partOf(e.Evidence, runName(i))
		part.Codes = one.codes
		if one.late {
			part.Retransmitted = batchesOf(part)
		}
		if one.doubles {
			part.Doubling = []audit.Window{{To: time.Now()}}
		}
		report := audit.Compare(part)
		for _, v := range report.Violations(part) {
			c.t.Errorf("%v: %s", one, v)
		}
		for _, example := range report.Examples {
			c.t.Logf("%v: %s", one, example)
		}
	}
	c.judgeEnds(g.cases)
}

// partOf is the evidence of one case. Its offsets are dense only together with the others'.
func (c *crashes) partOf(e audit.Evidence, run string) audit.Evidence {
	of := audit.Evidence{Archive: e.Archive, Forgets: e.Forgets, Sent: c.sent[run], Sinks: map[string][]roundtrip.Delivery{}, Retransmitted: e.Retransmitted}
	next := map[int]int64{}
	for sink, all := range e.Sinks {
		for _, d := range all {
			if d.Source == crashSource(run) {
				if sink == e.Archive {
					d.Offset, next[d.Lane] = next[d.Lane], next[d.Lane]+1
				}
				of.Sinks[sink] = append(of.Sinks[sink], d)
			}
		}
	}
	of.Letters = slices.DeleteFunc(slices.Clone(e.Letters), func(l audit.Letter) bool { return l.Source != crashSource(run) })
	of.Heads = slices.DeleteFunc(slices.Clone(e.Heads), func(h audit.Head) bool { return h.Source != crashSource(run) })
	return of
}

// batchesOf are the batches that brought a case's events in, as the archive has them.
func batchesOf(e audit.Evidence) map[int64]bool {
	all := map[int64]bool{}
	for _, d := range e.Sinks[e.Archive] {
		number, _ := pipeline.SplitPosition(d.Position)
		all[number] = true
	}
	return all
}

// judgeEnds wants no process to have ended but those that were to.
func (c *crashes) judgeEnds(cases []crash) {
	want := 0
	for _, one := range cases {
		want += one.restarts + one.others
		if one.action == failpoint.Kill && !one.unsupervised {
			want++
		}
	}
	if ends := c.watch.ends(""); ends != want {
		c.t.Errorf("%d processes ended, and %d were to", ends, want)
	}
}

// ends is how often a part ended, or all did.
func (w *watch) ends(name string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, line := range w.log {
		said := name == "" || strings.Contains(line, " "+name+" ")
		if said && (strings.Contains(line, " ended: ") || strings.Contains(line, " does not start: ")) {
			n++
		}
	}
	return n
}

// runs reports whether the last word on a part is not that it ended.
func (w *watch) runs(name string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, line := range slices.Backward(w.log) {
		if strings.Contains(line, " "+name+" ") {
			return strings.Contains(line, " runs again")
		}
	}
	return true
}
