package main

import (
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
	"github.com/waybillhq/waybill/pipeline/failpoint"
	"github.com/waybillhq/waybill/test/faults/audit"
)

// crash is a case: a process that dies, or does not hear an answer, at a point.
type crash struct {
	point  string
	action string
	// nth hit of the point; 2 is that of the archive where both sinks come there.
	nth int
	// events of a call; more than 64 are stored by COPY.
	events int
	// provoke, which may be nil, leads to the point beside the load.
	provoke func(c *crashes) error
	// doubles: the endpoint may get events again.
	doubles bool
	codes   []string // that dead letters may have
}

func (c crash) String() string { return fmt.Sprintf("%s %s %d", c.point, c.action, c.nth) }

// died and lost are the two actions at the points of the names, each for a few events.
func died(doubles bool, nth, events int, points ...string) []crash {
	var all []crash
	for _, p := range points {
		all = append(all, crash{point: p, action: failpoint.Kill, nth: nth, events: events, doubles: doubles})
	}
	return all
}

func lost(doubles bool, nth, events int, points ...string) []crash {
	all := died(doubles, nth, events, points...)
	for i := range all {
		all[i].action = failpoint.Lose
	}
	return all
}

func provoked(provoke func(c *crashes) error, all []crash) []crash {
	for i := range all {
		all[i].provoke = provoke
	}
	return all
}

// A few events in one statement, and many by COPY.
const few, many = 3, 100

// crashGroups are the cases, by the system that they share.
func crashGroups() map[string][]crash {
	return map[string][]crash{
		"ingest": slices.Concat(
			died(false, 1, few, "ingest/before-commit-small", "ingest/after-commit-small"),
			died(false, 1, many, "ingest/in-transaction", "ingest/before-commit-large", "ingest/after-commit-large"),
			died(false, 1, few, "ingest/before-enqueue", "ingest/after-enqueue", "ingest/before-answer", "ingest/after-answer"),
			died(false, 1, few, "ingest/before-publish", "ingest/after-publish"),
			lost(false, 1, few, "ingest/after-commit-small", "ingest/after-publish"),
			lost(false, 1, many, "ingest/after-commit-large"),
		),
		"forwarder": slices.Concat(
			died(false, 1, few, "forwarder/before-renew", "forwarder/after-renew", "forwarder/before-pull", "forwarder/after-pull", "forwarder/before-send"),
			died(true, 1, few, "forwarder/after-send", "forwarder/before-remember", "forwarder/after-remember",
				"forwarder/before-receipt", "forwarder/after-receipt", "forwarder/before-ack", "forwarder/after-ack"),
			lost(true, 1, few, "forwarder/after-send"),
			lost(false, 1, few, "forwarder/after-renew", "forwarder/after-receipt"),
		),
	}
}

// crashes is a system and the cases that it goes through.
type crashes struct {
	*system
	t *testing.T

	run  string                       // of the case, a part of its events' sources
	sent map[string][]roundtrip.Entry // by run
	ends int                          // of processes, that cases asked for
}

func TestCrashAtEveryPoint(t *testing.T) {
	binary, err := build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for name, cases := range crashGroups() {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // most of the time is waiting: for leases, and for what must come again
			runCrashes(t, binary, cases)
		})
	}
}

// crashSetup makes a small system that recovers soon.
func crashSetup(c *devrun.Config, _ *system) error {
	c.Ingests, c.Forwarders, c.Janitors, c.Lanes = 1, 1, 1, 4
	c.Grace, c.Queue.LeaseTTL, c.RestartPause = 2*time.Second, 2*time.Second, 100*time.Millisecond
	c.Via = nil
	c.Env = append(c.Env, "WAYBILL_RETRANSMIT_EVERY=500ms")
	return nil
}

func runCrashes(t *testing.T, binary string, cases []crash) {
	s, err := startSystem(t.Context(), binary, &condition{name: "crashes", setup: crashSetup})
	if err != nil {
		t.Fatal(err)
	}
	c := &crashes{system: s, t: t, sent: map[string][]roundtrip.Entry{}}
	defer func() {
		if err := errors.Join(s.stop(), s.remove()); err != nil {
			t.Error(err)
		}
	}()
	for i, one := range cases {
		began := time.Now()
		c.run = fmt.Sprintf("%02d", i)
		if err := c.play(one); err != nil {
			t.Errorf("%v: %v", one, err)
			break
		}
		t.Logf("%v: %.1f s", one, time.Since(began).Seconds())
	}
	c.judge(cases)
	if t.Failed() {
		showLogs(t, s.dir)
	}
}

// play goes through one case: something is sent, the process comes to the point, what was
// sent is answered, something else is sent, and everything is settled.
func (c *crashes) play(one crash) error {
	name := strings.Split(one.point, "/")[0] + "-1"
	pid := c.pid(name)
	if err := c.arm(name, one.point, one.action, one.nth); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), caseLimit)
	var sending errgroup.Group
	sending.Go(func() error { return c.send(ctx, one.events) })
	defer func() { cancel(); _ = sending.Wait() }() // an error is returned below
	if one.provoke != nil {
		if err := one.provoke(c); err != nil {
			return err
		}
	}
	if err := poll(ctx, caseLimit, "the point is reached", func(context.Context) error {
		if !c.struck(name) {
			return errors.New("it was not")
		}
		return nil
	}); err != nil {
		return errors.Join(err, errors.New("the order is taken back"), c.takeBack(name))
	}
	if one.action == failpoint.Kill {
		c.ends++
		if err := poll(ctx, caseLimit, name+" dies and is started again", func(context.Context) error {
			if now := c.pid(name); now == pid || now == 0 {
				return fmt.Errorf("it is still process %d", now)
			}
			return nil
		}); err != nil {
			return err
		}
	}
	if _, err := c.disarm(name); err != nil {
		return err
	}
	if err := sending.Wait(); err != nil {
		return err
	}
	if err := c.send(ctx, few); err != nil {
		return err
	}
	return c.settled(ctx)
}

func (c *crashes) takeBack(name string) error {
	_, err := c.disarm(name)
	return err
}

// caseLimit bounds a case.
const caseLimit = 40 * time.Second

// send sends events of the case's key in one call, again until they are accepted.
func (c *crashes) send(ctx context.Context, n int) error {
	sender, err := producer.NewHTTP(c.stack.HTTP[0], false)
	if err != nil {
		return err
	}
	defer sender.Close()
	run := c.run
	events := make([]*pb.CloudEvent, n)
	entries := make([]roundtrip.Entry, n)
	for i := range events {
		id := fmt.Sprintf("%s-%d", run, len(c.sent[run])+i)
		data := []byte("data of " + id)
		events[i] = &pb.CloudEvent{
			Source: crashSource(run), Type: "crash", Id: id, SpecVersion: "1.0", Data: &pb.CloudEvent_BinaryData{BinaryData: data},
		}
		entries[i] = roundtrip.Entry{
			Source: crashSource(run), Type: "crash", ID: id, DataCRC32C: crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)),
		}
	}
	for i, outcome := range producer.SendUntil(ctx, sender, events, caseLimit, nil) {
		entries[i].Accepted, entries[i].Unknown, entries[i].Err = outcome.Err == nil, outcome.Unknown, outcome.Err
	}
	c.sent[run] = append(c.sent[run], entries...)
	return ctx.Err()
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
		err = conn.QueryRow(ctx, `SELECT count(*) FROM waybill.batches`).Scan(&waiting)
		if err == nil && waiting > 0 {
			err = fmt.Errorf("%d batches wait", waiting)
		}
		return err
	})
}

// judge audits what became of the events of each case, and of the archive as a whole.
func (c *crashes) judge(cases []crash) {
	c.t.Helper()
	trial := &trial{under: &condition{}, system: c.system}
	e, err := trial.gather(c.t.Context(), new(roundtrip.Ledger))
	if err != nil {
		c.t.Error(err)
		return
	}
	if e.archive != nil || e.left != 0 {
		c.t.Errorf("the archive cannot be read (%v), or %d rows of events are left", e.archive, e.left)
	}
	if holes := audit.Compare(e.Evidence).Sinks[archiveSink].Holes; holes > 0 {
		c.t.Errorf("the offsets of the archive have %d holes", holes)
	}
	for i, one := range cases {
		part := c.partOf(e.Evidence, fmt.Sprintf("%02d", i))
		part.Codes = one.codes
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
	if ends := c.watch.count(" ended: "); ends != c.ends {
		c.t.Errorf("%d processes ended, and %d were to", ends, c.ends)
	}
}

// partOf is the evidence of one case. Its offsets are dense only together with the others'.
func (c *crashes) partOf(e audit.Evidence, run string) audit.Evidence {
	of := audit.Evidence{Archive: e.Archive, Sent: c.sent[run], Sinks: map[string][]roundtrip.Delivery{}, Retransmitted: e.Retransmitted}
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

// count is how often the supervisors said something.
func (w *watch) count(what string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, line := range w.log {
		if strings.Contains(line, what) {
			n++
		}
	}
	return n
}
