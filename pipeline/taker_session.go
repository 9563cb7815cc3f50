package pipeline

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/pipeline/failpoint"
)

const (
	// busyPause is between reads that find nothing, at first; it grows to idlePause with the time that there
	// was nothing, and after sleepAfter the taker sleeps.
	busyPause  = 2 * time.Millisecond
	idlePause  = 10 * time.Millisecond
	sleepAfter = 100 * time.Millisecond
	// Above gatherRate events a second it lets gatherPause pass from one unit to the next: at a unit for each few events,
	// what comes behind the commit, a message and a receipt for each lane touched, would take all there is of the CPU.
	gatherRate  = 2000
	gatherPause = 10 * time.Millisecond
	// A taker that sleeps waits to be notified, and looks all the same: for what was emitted when it fell asleep, and
	// committed later, every dozePause at first, and every sleepPause when it has slept for dozeFor.
	dozePause  = 50 * time.Millisecond
	sleepPause = 250 * time.Millisecond
	dozeFor    = time.Second
	// sayEvery is how often it says that it sleeps: it is believed for three seconds.
	sayEvery = time.Second
	// shareEvery is how often it looks whether the shards are spread over the takers.
	shareEvery = time.Second
)

// takerSession is a taker's connection and what belongs to it. It is of one goroutine.
type takerSession struct {
	*taker
	conn   *pgx.Conn
	shards []int16
	shared time.Time // when it last looked at the others
	read   outboxScan
	flying *takenUnit // nil: nothing is under way
	// alone is how many rows are yet to be taken one by one: Postgres refused the data of one of them.
	alone    int
	failures int           // of units, one after another
	backoff  time.Duration // before the next read

	rate      float64   // events a second that come, lately
	submitted time.Time // the last unit
	active    time.Time // there was something
	slept     time.Time // it sleeps since then; zero: it is awake
	said      time.Time
}

// takenUnit is what was submitted.
type takenUnit struct {
	keys    []outboxKey // ascending
	ages    []time.Duration
	read    time.Time  // when
	before  outboxScan // what was read then, without it
	tracing *Accepting
	done    <-chan error
}

func (u *takenUnit) has(k outboxKey) bool {
	_, found := slices.BinarySearchFunc(u.keys, k, outboxKey.compare)
	return found
}

// take takes until ctx ends or the connection fails.
func (s *takerSession) take(ctx context.Context) error {
	for ; ctx.Err() == nil; s.wait(ctx) {
		if err := s.share(ctx); err != nil {
			return err
		}
		if len(s.shards) == 0 {
			s.note(nil)
			pause(ctx, shareEvery/4)
			continue
		}
		if err := s.in.room(); err != nil {
			s.land()
			s.note(fmt.Errorf("rows wait in the outbox: %w", err))
			pause(ctx, roomPause)
			continue
		}
		if err := s.round(ctx); err != nil {
			return err
		}
	}
	return nil
}

// wait waits after a failure.
func (s *takerSession) wait(ctx context.Context) {
	if s.backoff > 0 {
		pause(ctx, s.backoff)
		s.backoff = 0
	}
}

// round reads once, and submits what was found, or rests.
func (s *takerSession) round(ctx context.Context) error {
	s.gather(ctx)
	failpoint.Hit("ingest/before-outbox-read")
	before, most, at := s.read, s.most, time.Now()
	if s.alone > 0 {
		most.rows = 1
	}
	reading, cancel := context.WithTimeout(ctx, s.in.cfg.FlushTimeout)
	defer cancel()
	rows, next, all, err := s.store.readOutbox(reading, s.conn, s.read, s.shards, most)
	if err != nil {
		return err
	}
	s.note(nil)
	s.read = next
	if s.flying != nil {
		rows = slices.DeleteFunc(rows, func(r outboxRow) bool { return s.flying.has(r.key) })
	}
	switch {
	case len(rows) > 0:
		s.active = time.Now()
		if !s.land() {
			return nil // what was read after it is read again
		}
		if err := s.submit(ctx, rows, before, at); err != nil {
			return err
		}
		return s.wake(ctx)
	case !all: // all that is within the limit is under way
		s.land()
		return nil
	default:
		return s.rest(ctx)
	}
}

// gather lets events come together where they are many.
func (s *takerSession) gather(ctx context.Context) {
	if since := time.Since(s.submitted); s.rate > gatherRate && since < gatherPause {
		pause(ctx, gatherPause-since)
	}
}

// came takes note of events that were found.
func (s *takerSession) came(events int) {
	now := time.Now()
	// A second's worth of memory is too long, and a unit's too little.
	const weight = 0.2
	s.rate = (1-weight)*s.rate + weight*float64(events)/max(now.Sub(s.submitted).Seconds(), 1e-4)
	s.submitted = now
}

// submit hands rows over, but for those of which no event can be made.
func (s *takerSession) submit(ctx context.Context, rows []outboxRow, before outboxScan, at time.Time) error {
	u := &takenUnit{read: at, before: before}
	events := make([]Event, 0, len(rows))
	var refused []outboxKey
	var reasons []string
	for i := range rows {
		e, err := s.reader.event(&rows[i])
		if err != nil {
			refused, reasons = append(refused, rows[i].key), append(reasons, err.Error())
			continue
		}
		events = append(events, e)
		u.keys, u.ages = append(u.keys, rows[i].key), append(u.ages, rows[i].age)
	}
	if err := s.refuse(ctx, refused, reasons); err != nil {
		return err
	}
	s.alone = max(0, s.alone-1)
	if len(events) == 0 {
		return nil
	}
	failpoint.Hit("ingest/before-outbox-submit")
	u.tracing = s.in.cfg.Tracing.Accept("outbox", at, events)
	done := make(answerChannel, 1)
	u.done = done
	s.in.submit(&unit{events: events, taken: u.keys, asked: done})
	s.flying = u
	s.came(len(events))
	s.show(len(s.shards), len(u.keys))
	return nil
}

// refuse marks rows, so that nobody reads them again.
func (s *takerSession) refuse(ctx context.Context, keys []outboxKey, reasons []string) error {
	if len(keys) == 0 {
		return nil
	}
	s.in.log.Error("rows of the outbox are no events", "rows", len(keys), "reason", reasons[0])
	return s.store.refuseOutbox(ctx, keys, reasons)
}

// land waits for the answer of what is under way: there is one, whatever happens. It reports whether that is
// committed; if not, what was read since then counts as not read.
func (s *takerSession) land() bool {
	if s.flying == nil {
		return true
	}
	return s.landed(<-s.flying.done)
}

// landed takes an answer.
func (s *takerSession) landed(err error) bool {
	u := s.flying
	s.flying = nil
	s.show(len(s.shards), 0)
	failpoint.Hit("ingest/after-outbox-answer")
	u.tracing.Answered(err)
	s.metrics.answered(u, err)
	if err == nil {
		s.failures = 0
		return true
	}
	s.read = u.before
	var data *dataError
	refused := errors.As(err, &data)
	switch {
	case errors.Is(err, errTakenElsewhere): // those that are left are found by the next read
	case refused && len(u.keys) > 1:
		s.alone = len(u.keys)
	case refused:
		// In a transaction of its own; while it cannot be marked, it is tried again.
		marking, cancel := context.WithTimeout(context.Background(), s.in.cfg.FlushTimeout)
		defer cancel()
		if s.refuse(marking, u.keys, []string{err.Error()}) == nil {
			break
		}
		fallthrough
	default:
		s.backoff = min(takerMinPause<<min(s.failures, 5), takerMaxPause)
		s.failures++
	}
	return false
}

// rest waits a moment, or for what is under way, or, when there was nothing for long, to be notified.
func (s *takerSession) rest(ctx context.Context) error {
	idle := time.Since(s.active)
	wait := min(max(idle/10, busyPause), idlePause)
	switch {
	case s.flying != nil:
		timer := time.NewTimer(busyPause)
		defer timer.Stop()
		select {
		case err := <-s.flying.done:
			s.landed(err)
		case <-timer.C:
		}
		return nil
	case idle < sleepAfter:
		pause(ctx, wait)
		return nil
	case s.slept.IsZero(): // it looks once more
		s.slept = time.Now()
		return s.say(ctx, true)
	}
	if time.Since(s.said) > sayEvery {
		if err := s.say(ctx, true); err != nil {
			return err
		}
	}
	wait = dozePause
	if time.Since(s.slept) > dozeFor {
		wait = sleepPause
	}
	waiting, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	if _, err := s.conn.WaitForNotification(waiting); err != nil && waiting.Err() == nil {
		return fmt.Errorf("wait to be notified: %w", err)
	}
	return nil
}

// wake says that it no longer sleeps.
func (s *takerSession) wake(ctx context.Context) error {
	if s.slept.IsZero() {
		return nil
	}
	s.slept = time.Time{}
	return s.say(ctx, false)
}

// say says whether the taker of its shards sleeps.
func (s *takerSession) say(ctx context.Context, asleep bool) error {
	s.said = time.Now()
	return s.sayOf(ctx, s.shards, asleep)
}

func (s *takerSession) sayOf(ctx context.Context, shards []int16, asleep bool) error {
	if _, err := s.conn.Exec(ctx, outboxSleepSQL, shardBits(shards), asleep); err != nil {
		return fmt.Errorf("say that the taker sleeps or wakes: %w", err)
	}
	return nil
}

func shardBits(shards []int16) (mask int32) {
	for _, shard := range shards {
		mask |= 1 << shard
	}
	return mask
}

// share gives shards back that are beyond its share, or takes free ones up to it.
func (s *takerSession) share(ctx context.Context) error {
	if time.Since(s.shared) < shareEvery {
		return nil
	}
	s.shared = time.Now()
	var takers int
	if err := s.conn.QueryRow(ctx, outboxTakersSQL).Scan(&takers); err != nil {
		return fmt.Errorf("count the takers: %w", err)
	}
	takers = max(takers, 1)
	most := (outboxShards + takers - 1) / takers
	switch {
	case len(s.shards) > most:
		return s.giveBack(ctx, s.shards[most:])
	case len(s.shards) < most:
		return s.takeFree(ctx, most-len(s.shards))
	}
	return nil
}

// published waits until what was taken is in the queue, or left to the janitor: whoever takes from its shards next
// publishes what comes later, which is not to come before.
func (s *takerSession) published(ctx context.Context) {
	waiting, cancel := context.WithTimeout(ctx, s.in.cfg.StopTimeout)
	defer cancel()
	s.in.publisher.catchUp(waiting)
}

// giveBack gives shards back, of which nothing is under way then.
func (s *takerSession) giveBack(ctx context.Context, shards []int16) error {
	s.land()
	s.published(ctx)
	shards = slices.Clone(shards)
	if !s.slept.IsZero() {
		if err := s.sayOf(ctx, shards, false); err != nil {
			return err
		}
	}
	var given int
	if err := s.conn.QueryRow(ctx, outboxUnlockSQL, shards).Scan(&given); err != nil {
		return fmt.Errorf("give shards of the outbox back: %w", err)
	}
	if given != len(shards) {
		return fmt.Errorf("give shards of the outbox back: %d of %d were not this session's", len(shards)-given, len(shards))
	}
	s.shards = slices.DeleteFunc(s.shards, func(shard int16) bool { return slices.Contains(shards, shard) })
	s.show(len(s.shards), 0)
	return nil
}

// takeFree takes up to so many shards that nobody has, and begins to read anew where it got any.
func (s *takerSession) takeFree(ctx context.Context, most int) error {
	var candidates []int16
	for _, shard := range rand.Perm(outboxShards) {
		if !slices.Contains(s.shards, int16(shard)) {
			candidates = append(candidates, int16(shard))
		}
	}
	rows, err := s.conn.Query(ctx, outboxLockSQL, candidates, most)
	if err != nil {
		return fmt.Errorf("take shards of the outbox: %w", err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[int16])
	if err != nil {
		return fmt.Errorf("take shards of the outbox: %w", err)
	}
	if len(got) == 0 {
		return nil
	}
	s.shards = append(s.shards, got...)
	s.read = outboxScan{}
	if s.flying != nil {
		s.flying.before = outboxScan{}
	}
	s.show(len(s.shards), s.inHand())
	if !s.slept.IsZero() { // their last taker's word may be there still
		return s.say(ctx, true)
	}
	return s.sayOf(ctx, got, false)
}

// inHand is how many rows are under way.
func (s *takerSession) inHand() int {
	if s.flying == nil {
		return 0
	}
	return len(s.flying.keys)
}
