package main

import (
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"

	"github.com/waybillhq/waybill/internal/producer"
	"github.com/waybillhq/waybill/internal/roundtrip"
	"github.com/waybillhq/waybill/pipeline/failpoint"
)

// outboxCrashes are of events that come in by the outbox: the caller dies, the taker dies or does not hear an
// answer, and Postgres dies while the taker stands at a point.
func outboxCrashes() []crash {
	emits := crash{provoke: (*crashes).emit}
	dies, loses, stands, known, losesKnown := emits, emits, emits, emits, emits
	dies.action, loses.action, stands.action, known.action, losesKnown.action = failpoint.Kill, failpoint.Lose, failpoint.Stop, failpoint.Kill, failpoint.Lose
	stands.after, stands.others = (*crashes).killPostgres, 1
	known.prepare, known.provoke = (*crashes).sendFew, (*crashes).emitAgain
	losesKnown.prepare, losesKnown.provoke = known.prepare, known.provoke
	many := func(c crash) crash {
		c.provoke = func(c *crashes) error { return c.emitEvents(manyEmitted) }
		return c
	}
	caller := func(action string, committed, ends bool) crash {
		return crash{action: action, unsupervised: true, provoke: func(c *crashes) error { return c.emitByCommand(committed, ends) }}
	}
	taking := []string{"ingest/before-outbox-read", "ingest/before-outbox-submit", "ingest/after-outbox-answer"}
	return slices.Concat(
		dies.at(taking...),
		dies.at("ingest/before-commit-alone", "ingest/after-commit-alone", "ingest/before-enqueue", "ingest/after-enqueue", "ingest/before-answer"),
		many(dies).at("ingest/in-transaction", "ingest/in-copy", "ingest/before-commit", "ingest/after-commit"),
		loses.at("ingest/after-commit-alone"),
		many(loses).at("ingest/after-commit"),
		known.at("ingest/before-take-known", "ingest/after-take-known"),
		losesKnown.at("ingest/after-take-known"),
		stands.at(taking...),
		many(stands).at("ingest/before-commit"),
		caller(failpoint.Kill, false, false).at("waybill/before-emit", "waybill/after-emit"),
		caller(failpoint.Kill, true, false).at("waybill/after-emit-commit"),
		caller(failpoint.Lose, true, true).at("waybill/after-emit-commit"),
	)
}

// manyEmitted go by COPY.
const manyEmitted = 100

// emit emits a few events of the case's key in one transaction.
func (c *crashes) emit() error { return c.emitEvents(few) }

func (c *crashes) emitEvents(n int) error {
	var events []*pb.CloudEvent
	for range n {
		ce, entry := c.nextEvent()
		entry.Accepted = true
		events = append(events, ce)
		c.sent[c.run] = append(c.sent[c.run], entry)
	}
	return c.emitAll(events)
}

// emitAll emits until it is committed.
func (c *crashes) emitAll(events []*pb.CloudEvent) error {
	sender, err := producer.NewOutbox(c.stack.DatabaseURL)
	if err != nil {
		return err
	}
	defer sender.Close()
	for _, outcome := range producer.SendUntil(c.ctx, sender, events, caseLimit, nil) {
		if outcome.Err != nil {
			return outcome.Err
		}
	}
	return nil
}

// nextEvent makes the next event of the case's key.
func (c *crashes) nextEvent() (*pb.CloudEvent, roundtrip.Entry) {
	id := fmt.Sprintf("%s-%d", c.run, len(c.sent[c.run]))
	data := []byte(strings.Repeat(id, 20))
	ce := &pb.CloudEvent{
		Source: crashSource(c.run), Type: "crash", Id: id, SpecVersion: "1.0", Data: &pb.CloudEvent_BinaryData{BinaryData: data},
	}
	return ce, roundtrip.Entry{
		Source: ce.Source, Type: ce.Type, ID: id, DataCRC32C: crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)),
	}
}

func (c *crashes) sendFew() error { return c.send(few, smallData) }

// emitAgain emits events that an ingest has accepted, and nothing else comes before the taker has found them.
func (c *crashes) emitAgain() error {
	var events []*pb.CloudEvent
	for _, e := range c.sent[c.run] {
		events = append(events, &pb.CloudEvent{Source: e.Source, Type: e.Type, Id: e.ID, SpecVersion: "1.0"})
	}
	return errors.Join(c.emitAll(events), c.awaitPoint())
}

// emitByCommand calls `waybill emit --outbox`, which comes to the point. committed: its event is to be accepted; ends: the
// command ends well.
func (c *crashes) emitByCommand(committed, ends bool) error {
	ce, entry := c.nextEvent()
	cmd := exec.CommandContext(c.ctx, c.binary, "emit", "--outbox", c.stack.DatabaseURL, "--id", ce.Id, "--source", ce.Source, "--type", ce.Type,
		"--content-type", "text/plain", "--data", string(ce.GetBinaryData()))
	cmd.Env = append(os.Environ(), "WAYBILL_ID=waybill-1", "WAYBILL_FAILPOINTS="+c.ordersDir())
	out, err := cmd.CombinedOutput()
	if (err == nil) != ends {
		return fmt.Errorf("the command ended with %v: %s", err, out)
	}
	if committed {
		entry.Accepted = true
		c.sent[c.run] = append(c.sent[c.run], entry)
	}
	return nil
}

// killPostgres ends the server as a crash would, while the ingest stands still, and then lets the ingest go on.
func (c *crashes) killPostgres() error {
	pid := c.pid("ingest-1")
	ends := c.watch.ends("postgres")
	if err := c.signal("postgres", endSignal("postgres")); err != nil {
		return err
	}
	time.Sleep(failpoint.StopSettles)
	return errors.Join(syscall.Kill(pid, syscall.SIGCONT), c.await("Postgres runs again", func() bool {
		return c.watch.ends("postgres") > ends && c.watch.runs("postgres")
	}))
}
