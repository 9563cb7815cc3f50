package pipeline

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// What others are notified of while a taker has work is not kept: it would cost memory for as long as there is
// work, and then a look for each.
func TestNotificationsAreNotKept(t *testing.T) {
	r := mustRig(t)
	r.stop()
	s := r.mustBeliever(t, r.mustIngester(t, r.url, leaveOutbox))
	for range 200 {
		mustExec(t, r.store.pool, `NOTIFY waybill_outbox`)
	}
	if err := s.round(t.Context()); err != nil { // hears of them
		t.Fatal(err)
	}
	s.active, s.slept, s.said = time.Now().Add(-time.Hour), time.Now(), time.Now()
	looks := 0
	for range 10 {
		began := time.Now()
		if err := s.rest(t.Context()); err != nil {
			t.Fatal(err)
		}
		if time.Since(began) < dozePause/2 {
			looks++
		}
	}
	if looks > 1 {
		t.Errorf("a taker that sleeps was woken %d times by what it heard of before", looks)
	}
	eventually(t, patience, "it is woken by what comes", func() bool {
		mustExec(t, r.store.pool, `NOTIFY waybill_outbox`)
		began := time.Now()
		if err := s.rest(t.Context()); err != nil {
			t.Fatal(err)
		}
		return time.Since(began) < dozePause/2
	})
}

// A taker of which one read has taken Postgres too long comes to read all there is again. Before that it does not rest, and
// does not look for rows with numbers of the past.
func TestATakerRestsAfterASlowRead(t *testing.T) {
	r := mustRig(t)
	r.stop()
	s := r.mustBeliever(t, r.mustIngester(t, r.url, leaveOutbox))
	s.window, s.ids = 1, 1 // as if it had
	const most = 300
	reads := 0
	for ; s.window > 0 && reads < most; reads++ {
		if err := s.round(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if reads == most {
		t.Errorf("after %d reads of an empty outbox it reads of %d transactions at once, and not of all", reads, s.window)
	}
	began := time.Now()
	s.active = began // it does not fall asleep
	if err := s.round(t.Context()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < busyPause {
		t.Errorf("a read that found nothing was followed by a rest of %v", took)
	}
}

// A taker that is to stop while it reads keeps its shards all the same until what it took is published.
func TestAStopDuringAReadKeepsTheShards(t *testing.T) {
	r := mustPatientRig(t)
	service := mustService(t, r.url)
	eventually(t, patience, "it has all shards", func() bool { n, _ := r.in.taker.state(); return n == outboxShards })
	r.nats.Stop()
	service.mustEmit(t, testCloudEvent("/s", "a"))
	eventually(t, patience, "it is committed", func() bool { return len(storedIDs(t, r.store)["/s"]) == 1 })
	locked := service.mustBegin(t)
	mustExec(t, locked, `LOCK TABLE waybill.outbox IN ACCESS EXCLUSIVE MODE`)
	mustWaitForALock(t, r.store)
	stopped := make(chan struct{})
	go func() { defer close(stopped); r.stop() }()
	next, _ := r.mustIngesterAt(t, r.url, nil)
	time.Sleep(time.Second)
	if err := locked.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second) // two looks of the other at what is free
	if n, _ := next.taker.state(); n > 0 {
		t.Errorf("%d shards were given away before what was taken from them was published", n)
	}
	if err := r.nats.Start(); err != nil {
		t.Fatal(err)
	}
	<-stopped
	eventually(t, patience, "the other has them", func() bool { n, _ := next.taker.state(); return n == outboxShards })
	service.mustEmit(t, testCloudEvent("/s", "b"))
	r.assertInOrder(t, 2)
}

// Shards are not given back before what was taken from them is published, however long that takes; and meanwhile
// the taker takes from the others.
func TestShardsAreKeptForAsLongAsPublishingTakes(t *testing.T) {
	r := mustPatientRig(t)
	r.stop()
	service := mustService(t, r.url)
	in, _ := r.mustIngesterAt(t, r.url, func(c *IngesterConfig) { c.StopTimeout = 300 * time.Millisecond })
	eventually(t, patience, "it has all shards", func() bool { n, _ := in.taker.state(); return n == outboxShards })
	r.nats.Stop()
	service.mustEmit(t, testCloudEvent("/s", "a"))
	eventually(t, patience, "it is committed", func() bool { return len(storedIDs(t, r.store)["/s"]) == 1 })
	next, _ := r.mustIngesterAt(t, r.url, nil)
	eventually(t, patience, "it takes from no more than its share", func() bool { n, _ := in.taker.state(); return n == outboxShards/2 })
	time.Sleep(2 * time.Second)
	if n, _ := next.taker.state(); n > 0 {
		t.Errorf("%d shards were given away before what was taken from them was published", n)
	}
	var events []CloudEvent
	for i := range 200 { // some of each shard
		events = append(events, testCloudEvent(fmt.Sprint("/of/", i), "b"))
	}
	service.mustEmit(t, events...)
	eventually(t, patience, "events of its share are stored", func() bool { return len(storedIDs(t, r.store)) > len(events)/4 })
	if err := r.nats.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "the other has its share", func() bool { n, _ := next.taker.state(); return n == outboxShards/2 })
	awaitTaken(t, r.store)
}

// An ingest that is to stop while Postgres and NATS are in its way ends within the time that is given to it: the taker
// does not ask for as much again.
func TestTheTakerDoesNotDelayTheStop(t *testing.T) {
	t.Parallel()
	r := mustPatientRig(t)
	r.stop()
	service := mustService(t, r.url)
	const limit = 10 * time.Second // half of it is for whoever is late on a loaded machine
	in := r.mustIngester(t, r.url, func(c *IngesterConfig) { c.FlushTimeout, c.StopTimeout = limit, limit })
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- in.Run(ctx) }()
	r.nats.Stop()
	service.mustEmit(t, testCloudEvent("/s", "a"))
	eventually(t, patience, "it is committed, and cannot be published", func() bool { return len(storedIDs(t, r.store)["/s"]) == 1 })
	held := service.mustBegin(t)
	mustExec(t, held, `SELECT FROM waybill.heads FOR UPDATE`)
	first := in.Submit([]Event{mustEvent(t, "/s", "test.event", "in its transaction")})
	mustWaitForALock(t, r.store)
	service.mustEmit(t, testCloudEvent("/s", "behind it"))
	eventually(t, patience, "the taker's events wait behind it", func() bool { _, n := in.taker.state(); return n == 1 })
	stop()
	began := time.Now()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 2*limit+limit/2 {
		t.Errorf("the stop took %v; the transaction under way and the stop have %v each", took, limit)
	}
	if err := <-first; err == nil {
		t.Error("the head was held, and an event of it was stored")
	}
}

// What a taker's process cannot commit, others take: it does not keep its shards.
func TestASickTakerDoesNotKeepItsRows(t *testing.T) {
	r := mustRig(t)
	r.stop()
	mustExec(t, r.store.pool, `ALTER TABLE waybill.batches ADD CONSTRAINT `+laneConstraint+` CHECK (lane < 4)`)
	store := mustStoreAt(t, r.url)
	store.lanes = 64 // the number was changed while it ran
	sick, err := NewIngester(DefaultIngesterConfig(), store, r.queue, testLog(t), testMeter)
	if err != nil {
		t.Fatal(err)
	}
	mustRun(t, sick.Run)
	eventually(t, patience, "it has all shards", func() bool { n, _ := sick.taker.state(); return n == outboxShards })
	r.mustIngesterAt(t, r.url, nil)
	eventually(t, patience, "it has its share", func() bool { n, _ := sick.taker.state(); return n == outboxShards/2 })
	var events []CloudEvent
	var want []string
	for i := range 200 {
		id := fmt.Sprint(i)
		events, want = append(events, testCloudEvent("/of/"+id, id)), append(want, id)
	}
	mustService(t, r.url).mustEmit(t, events...)
	awaitTaken(t, r.store)
	assertStored(t, r.store, want)
	if sick.Health() == nil {
		t.Error("it could commit after all")
	}
}

// Whoever may emit can call whatever is open to everybody, and leave the transaction open: takers do not wait for it.
func TestWhoEmitsHoldsUpNoTaker(t *testing.T) {
	r := mustRig(t)
	r.stop()
	service := mustService(t, r.url)
	open := service.mustBegin(t)
	for _, sql := range []string{
		`CREATE ROLE outbox_idler`, `GRANT USAGE ON SCHEMA waybill TO outbox_idler`, `SET LOCAL ROLE outbox_idler`,
		`SELECT waybill.outbox_sleep(65535, false)`, `SELECT waybill.outbox_wake(65535)`, `SELECT waybill.emit('/s', 'test.event', 'x', id => 'open')`,
	} {
		mustExec(t, open, sql)
	}
	r.mustIngesterAt(t, r.url, nil)
	for _, id := range []string{"a", "b"} {
		service.mustEmit(t, testCloudEvent("/s", id))
		awaitTaken(t, r.store)
		time.Sleep(2 * sleepAfter) // it falls asleep
	}
	assertStored(t, r.store, []string{"a", "b"})
}
