package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/pipeline/failpoint"
)

// crash is a case: a process that dies, or does not hear an answer, at a point.
type crash struct {
	point  string
	action string
	// nth hit of the point, 1 if it is 0. The second is the archive's where both sinks come
	// there: an object waits to be filled.
	nth int
	// events of the call, a few if it is 0; more than 64 are stored by COPY.
	events int
	typ    string // of the events
	// What leads to the point, each if it is not nil: before the order is given, after it,
	// and what mends it once the process runs again.
	prepare, provoke, after func(c *crashes) error
	// restarts of the process beside its death at the point, and ends of others.
	restarts, others int
	// unsupervised: the process is one that somebody calls.
	unsupervised bool
	// doubles: the endpoint may get events again.
	doubles bool
	// late: the events were queued again by somebody, under numbers of other batches.
	late  bool
	codes []string // that dead letters may have
}

func (c crash) String() string {
	return fmt.Sprintf("%s %s %d of %d events", c.point, c.action, max(c.nth, 1), max(c.events, few))
}

// at makes a case of each point, all else being the same.
func (c crash) at(points ...string) []crash {
	var all []crash
	for _, p := range points {
		c.point = p
		all = append(all, c)
	}
	return all
}

// crashGroup is the cases that share a system.
type crashGroup struct {
	name  string
	cases []crash
	// together: what they leave behind is settled at the end, since it is the same wait for all.
	together bool
	// patient: nothing is to fall out of the queue, and nothing is published again.
	patient bool
	// forgetful: an event that comes again is stored again.
	forgetful  bool
	behaviour  string // of the endpoint
	queueBytes int64  // 0: the default
	env        []string
}

// A few events, in one round trip, and many, by COPY.
const few, many = 3, 100

// refusedType is the type of events that the endpoint refuses, where it is told to.
const (
	refusedType = "refused"
	refuse      = `{"refuse_type":"^refused$"}`
)

// crashGroups is the table of all cases, those that take long first.
func crashGroups() []*crashGroup {
	return []*crashGroup{
		{name: "retransmit", cases: retransmitCrashes()},
		{name: "ingest", cases: ingestCrashes()},
		{name: "outbox", cases: outboxCrashes()},
		{name: "archive", cases: archiveCrashes(), patient: true},
		{name: "forwarder", cases: forwarderCrashes(), patient: true},
		{name: "forgetful", cases: forgetfulCrashes(), forgetful: true},
		{name: "trim", cases: trimCrashes(), env: []string{"WAYBILL_REPLAY_WINDOW=0s"}},
		{name: "paused", cases: ingestPauses()},
		{name: "shed", cases: shedCrashes(), queueBytes: 64 << 20},
		{name: "leases", cases: leaseCrashes(), patient: true},
		{name: "letters", cases: letterCrashes()},
		{name: "queue", cases: queueCrashes()},
		{name: "settle", cases: settleCrashes(), patient: true, together: true, behaviour: refuse},
	}
}

func ingestCrashes() []crash {
	dies, diesCopying := crash{action: failpoint.Kill}, crash{action: failpoint.Kill, events: many}
	loses, losesCopy := crash{action: failpoint.Lose}, crash{action: failpoint.Lose, events: many}
	return slices.Concat(
		dies.at("ingest/before-commit-alone", "ingest/after-commit-alone"),
		diesCopying.at("ingest/in-transaction", "ingest/in-copy", "ingest/before-commit", "ingest/after-commit"),
		dies.at("ingest/before-enqueue", "ingest/after-enqueue", "ingest/before-answer", "ingest/after-answer",
			"ingest/before-publish", "ingest/after-publish"),
		losesCopy.at("ingest/after-commit"),
		loses.at("ingest/after-commit-alone", "ingest/after-publish"),
	)
}

// forgetfulCrashes are of an ingest that stores few events by one statement, since it need not
// look for those that come again.
func forgetfulCrashes() []crash {
	return slices.Concat(
		crash{action: failpoint.Kill}.at("ingest/before-commit-alone", "ingest/after-commit-alone"),
		crash{action: failpoint.Lose}.at("ingest/after-commit-alone"),
	)
}

// ingestPauses take as long as Postgres and the janitors let a transaction stand still.
func ingestPauses() []crash {
	return crash{
		action: failpoint.Stop, events: many,
		prepare: func(c *crashes) error { return c.send(few, smallData) }, after: (*crashes).awaitHeads,
	}.at("ingest/in-transaction", "ingest/in-copy")
}

func forwarderCrashes() []crash {
	dies, loses := crash{action: failpoint.Kill}, crash{action: failpoint.Lose}
	diesHolding, losesHolding := crash{action: failpoint.Kill, doubles: true}, crash{action: failpoint.Lose, doubles: true}
	return slices.Concat(
		dies.at("forwarder/after-pull", "forwarder/before-send"),
		diesHolding.at("forwarder/after-send", "forwarder/before-remember", "forwarder/after-remember",
			"forwarder/before-receipt", "forwarder/after-receipt", "forwarder/before-ack", "forwarder/after-ack"),
		losesHolding.at("forwarder/after-send"),
		loses.at("forwarder/after-receipt"),
	)
}

// archiveCrashes come once the endpoint has everything and its message is acked.
func archiveCrashes() []crash {
	dies, loses := crash{action: failpoint.Kill}, crash{action: failpoint.Lose}
	diesSecond, losesSecond := crash{action: failpoint.Kill, nth: 2}, crash{action: failpoint.Lose, nth: 2}
	return slices.Concat(
		dies.at("forwarder/before-put", "forwarder/after-put", "forwarder/before-cursor", "forwarder/after-cursor"),
		loses.at("forwarder/after-cursor"), // first: a cursor is stored now and then
		diesSecond.at("forwarder/before-remember", "forwarder/after-remember", "forwarder/before-receipt",
			"forwarder/after-receipt", "forwarder/before-ack", "forwarder/after-ack"),
		loses.at("forwarder/after-put"),
		losesSecond.at("forwarder/after-receipt"),
	)
}

// leaseCrashes come while nothing is in hand: leases are renewed, and pulls repeated, at any time.
func leaseCrashes() []crash {
	diesIdle, loses := crash{action: failpoint.Kill, provoke: (*crashes).awaitPoint}, crash{action: failpoint.Lose}
	taking := func(action string) crash { return crash{action: action}.ofNext("forwarder-1", nil) }
	giving, losesGiving := crash{action: failpoint.Kill}, crash{action: failpoint.Lose, restarts: 1}
	// What is sent before may be in hand in one lane while another is given up.
	giving.provoke = func(c *crashes) error { return errors.Join(c.signal("forwarder-1", syscall.SIGTERM), c.awaitPoint()) }
	losesGiving.provoke = giving.provoke
	return slices.Concat(
		diesIdle.at("forwarder/before-renew", "forwarder/after-renew", "forwarder/before-pull"),
		taking(failpoint.Kill).at("forwarder/before-take", "forwarder/after-take"),
		giving.at("forwarder/before-release", "forwarder/after-release"),
		loses.at("forwarder/after-renew"),
		taking(failpoint.Lose).at("forwarder/after-take"),
		losesGiving.at("forwarder/after-release"),
	)
}

// settleCrashes: what a dead janitor had in hand comes again after its ack wait.
func settleCrashes() []crash {
	dies, loses := crash{action: failpoint.Kill}, crash{action: failpoint.Lose}
	refusing := func(action string) crash {
		return crash{action: action, typ: refusedType, codes: []string{"VALIDATION_FAILED"}}
	}
	points := []string{"janitor/before-lock", "janitor/after-lock", "janitor/before-commit", "janitor/after-commit", "janitor/before-ack", "janitor/after-ack"}
	return slices.Concat(
		dies.at(points...),
		refusing(failpoint.Kill).at("janitor/after-lock", "janitor/before-commit", "janitor/after-commit", "janitor/after-ack"),
		loses.at("janitor/before-commit", "janitor/after-commit"),
		refusing(failpoint.Lose).at("janitor/before-commit", "janitor/after-commit"),
	)
}

// retransmitCrashes are of batches that their ingest did not publish.
func retransmitCrashes() []crash {
	unpublished := func(c *crashes) error { return c.arm("ingest-1", "ingest/before-publish", failpoint.Kill, 1) }
	published := func(c *crashes) error { _, err := c.disarm("ingest-1"); return err }
	dies := crash{action: failpoint.Kill, prepare: unpublished, after: published, others: 1}
	loses := dies
	loses.action = failpoint.Lose
	return slices.Concat(
		dies.at("janitor/before-claim", "janitor/after-claim", "janitor/before-publish", "janitor/after-publish"),
		loses.at("janitor/after-claim", "janitor/after-publish"),
	)
}

// letterCrashes are of events that become dead letters because they waited for too long, and
// of such that are queued again.
func letterCrashes() []crash {
	expiring := crash{
		action: failpoint.Kill, prepare: (*crashes).expireSoon, provoke: func(c *crashes) error { return c.commit() },
		after: func(c *crashes) error { return c.behave(c.ctx, `{}`) }, codes: []string{"expired"},
	}
	requeued := crash{
		action: failpoint.Kill, typ: refusedType, prepare: (*crashes).refused, provoke: (*crashes).requeueBadly,
		after: func(c *crashes) error { return c.requeue("somebody-else").Run() }, unsupervised: true, late: true,
	}
	losesExpiring, losesRequeued := expiring, requeued
	losesExpiring.action, losesRequeued.action = failpoint.Lose, failpoint.Lose
	return slices.Concat(
		expiring.at("janitor/before-expire", "janitor/after-expire"),
		requeued.at("waybill/before-requeue", "waybill/after-requeue"),
		losesExpiring.at("janitor/after-expire"),
		losesRequeued.at("waybill/after-requeue"),
	)
}

func queueCrashes() []crash {
	noStream := crash{action: failpoint.Kill, provoke: func(c *crashes) error { return (&deleteStream{c.system, pipeline.EventsStream}).inject(c.ctx) }}
	noConsumers := crash{action: failpoint.Kill, nth: 2, provoke: func(c *crashes) error { return (&deleteConsumers{c.system, ingressSink}).inject(c.ctx) }}
	losesStream, losesConsumer := noStream, noConsumers
	losesStream.action, losesConsumer.action = failpoint.Lose, failpoint.Lose
	return slices.Concat(
		noStream.at("janitor/before-create-stream", "janitor/after-create-stream"),
		losesStream.at("janitor/after-create-stream"),
		noConsumers.at("janitor/before-create-consumer", "janitor/after-create-consumer"),
		losesConsumer.at("janitor/after-create-consumer"),
	)
}

// trimCrashes: a janitor trims when it starts.
func trimCrashes() []crash {
	trims := crash{action: failpoint.Kill}.ofNext("janitor-1", (*crashes).ageSettled)
	loses := trims
	loses.action = failpoint.Lose
	return slices.Concat(trims.at("janitor/before-trim", "janitor/after-trim"), loses.at("janitor/after-trim"))
}

func shedCrashes() []crash {
	dies := crash{
		action: failpoint.Kill, provoke: (*crashes).fillQueue,
		after: func(c *crashes) error { return c.behave(c.ctx, `{}`) },
	}
	loses := dies
	loses.action = failpoint.Lose
	return slices.Concat(dies.at("janitor/before-shed", "janitor/after-shed"), loses.at("janitor/after-shed"))
}

// signalled sends a signal to a process; its order is then that of the one that follows it,
// or of its end.
func signalled(name string, signal syscall.Signal) func(c *crashes) error {
	return func(c *crashes) error { return c.signal(name, signal) }
}

// ofNext makes the point one of the process that follows the one that runs now, which stands
// still once something is prepared: it might come to the point by itself.
func (c crash) ofNext(name string, prepare func(c *crashes) error) crash {
	c.prepare = func(c *crashes) error {
		if err := call(prepare, c); err != nil {
			return err
		}
		if err := c.signal(name, syscall.SIGSTOP); err != nil {
			return err
		}
		time.Sleep(failpoint.StopSettles)
		return nil
	}
	c.provoke, c.restarts = signalled(name, syscall.SIGKILL), 1
	return c
}

// awaitHeads continues an ingest that was stopped in its transaction, once Postgres has taken
// the heads from it.
func (c *crashes) awaitHeads() error {
	conn, err := pgx.Connect(c.ctx, c.stack.DatabaseURL)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(c.ctx) }() // the locks end with the statement
	if _, err := conn.Exec(c.ctx, `SELECT FROM waybill.heads WHERE page IN (SELECT id / 32 FROM waybill.keys WHERE source = $1) FOR UPDATE NOWAIT`, crashSource(c.run)); err == nil {
		return errors.New("a stopped ingest does not hold the head that it moved")
	}
	return errors.Join(c.headsAreFree(c.ctx), c.signal("ingest-1", syscall.SIGCONT))
}

// awaitPoint sends nothing before the process has come to the point.
func (c *crashes) awaitPoint() error {
	return c.await("the point is reached", func() bool { return c.struck(c.one.process()) })
}

// expireSoon leaves behind events that the endpoint did not get, and a transaction that makes
// them expire.
func (c *crashes) expireSoon() error {
	if err := c.behave(c.ctx, `{"down":true}`); err != nil {
		return err
	}
	if err := c.send(few, smallData); err != nil {
		return err
	}
	conn, err := pgx.Connect(c.ctx, c.stack.DatabaseURL)
	if err != nil {
		return err
	}
	c.commit = func() error {
		_, err := conn.Exec(c.ctx, `COMMIT`)
		return errors.Join(err, conn.Close(c.ctx))
	}
	_, err = conn.Exec(c.ctx, `BEGIN; UPDATE waybill.batches SET expires_at = now() - interval '1 second'`)
	return err
}

// refused leaves behind events that the endpoint refused, and is no longer told to.
func (c *crashes) refused() error {
	if err := c.behave(c.ctx, refuse); err != nil {
		return err
	}
	if err := c.send(few, smallData); err != nil {
		return err
	}
	return errors.Join(c.settled(c.ctx), c.behave(c.ctx, `{}`))
}

// requeue is the operator's command.
func (c *crashes) requeue(id string) *exec.Cmd {
	cmd := exec.CommandContext(c.ctx, c.binary, "deadletters", "requeue", "--sink", ingressSink)
	cmd.Env = append(os.Environ(), "WAYBILL_DATABASE_URL="+c.stack.DatabaseURL, "WAYBILL_LANES=4",
		"WAYBILL_ID="+id, "WAYBILL_FAILPOINTS="+c.ordersDir())
	return cmd
}

// requeueBadly calls the command, which comes to the point and must not end well.
func (c *crashes) requeueBadly() error {
	out, err := c.requeue("waybill-1").CombinedOutput()
	if err == nil {
		return fmt.Errorf("the command ended well: %s", out)
	}
	return nil
}

// ageSettled waits until something that every sink has is old enough to be trimmed.
func (c *crashes) ageSettled() error {
	if err := c.send(few, smallData); err != nil {
		return err
	}
	if err := c.settled(c.ctx); err != nil {
		return err
	}
	old := time.Now().Add(crashGrace + time.Second)
	return c.await("it is old", func() bool { return time.Now().After(old) })
}

// fillQueue fills the queue for an endpoint that is down.
func (c *crashes) fillQueue() error {
	if err := c.behave(c.ctx, `{"down":true}`); err != nil {
		return err
	}
	for !c.struck(c.one.process()) {
		if err := c.send(8, largeData); err != nil {
			return err
		}
	}
	return nil
}
