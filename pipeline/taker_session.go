package pipeline

import (
	"context"
	"errors"
	"fmt"
	"math"
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
	// wholeEvery is how often all there is is looked at, for rows whose numbers were read past before they came: a
	// restore into a pipeline that runs brings such, or somebody who puts a row back by hand. That takes the longer the more
	// rows are deleted that vacuum may not remove: it takes no more than the wholeShare-th part of the time.
	wholeEvery = time.Minute
	wholeShare = 100
	// givesUp is after how many units that fail, one after another, a session ends, so that others may take what this process
	// cannot commit. It takes some seconds to come to that.
	givesUp = 6
	// publishedPause is between looks whether what was taken is published: about what a publish takes.
	publishedPause = time.Millisecond
)

// errGivesUp ends a session that does not come to commit anything.
var errGivesUp = errors.New("what is taken cannot be committed")

// takerSession is a taker's connection and what belongs to it. It is of one goroutine.
type takerSession struct {
	*taker
	conn    *outboxConn
	shards  []int16
	shared  time.Time // when it last looked at the others
	leaving *leavingShards
	read    outboxScan
	wholeAt time.Time     // when it last began with all there is
	whole   time.Duration // and how long the first read took
	window  int64         // the most numbers of transactions to read at once; 0: all
	ids     int64         // where that is 1, the most numbers of rows; 0: all
	flying  *takenUnit    // nil: nothing is under way
	// alone is how many rows are yet to be taken one by one: Postgres refused the data of one of them.
	alone    int
	failures int           // of units, one after another
	failure  error         // of the last of them
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
		if s.failures >= givesUp {
			return fmt.Errorf("%w: %w", errGivesUp, s.failure)
		}
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
	s.lookAtAll()
	before, most, at := s.read, s.most, time.Now()
	if s.alone > 0 {
		most.rows = 1
	}
	rows, next, all, err := s.readNew(ctx, most)
	if err != nil {
		return err
	}
	if before.none() || s.window > 0 {
		s.whole += time.Since(at)
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

// lookAtAll has the next read begin with all there is, once in a while.
func (s *takerSession) lookAtAll() {
	if s.read.none() || time.Since(s.wholeAt) >= max(wholeEvery, wholeShare*s.whole) {
		s.wholeAt, s.whole, s.read = time.Now(), 0, outboxScan{}
	}
}

// asking bounds a statement. It goes on when ctx ends, since the connection would end with it, and the shards be free
// before what was taken from them is published.
func (s *takerSession) asking(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), s.in.cfg.FlushTimeout)
}

// firstIDs is how many numbers of rows are read at once where one transaction alone is too much.
const firstIDs = 1 << 24

// readNew reads what is new. Where that takes Postgres too long, because of rows that are deleted and that vacuum may not
// remove, it reads of fewer transactions, or of a part of one, and then of more again.
func (s *takerSession) readNew(ctx context.Context, most outboxLimits) (rows []outboxRow, next outboxScan, all bool, err error) {
	reading, cancel := s.asking(ctx)
	defer cancel()
	most.last = s.upTo()
	rows, next, all, err = s.store.readOutbox(reading, s.conn.Conn, s.read, s.shards, most)
	switch {
	case isStatementTimeout(err) && s.window != 1:
		if s.window == 0 {
			err = s.conn.QueryRow(reading, xmaxSQL).Scan(&s.window)
			s.window -= s.read.past.xid
		} else {
			err = nil
		}
		s.window = max(s.window/16, 1)
		return nil, s.read, false, err
	case isStatementTimeout(err) && s.ids != 1:
		if s.ids == 0 {
			s.ids = firstIDs * 16
		}
		s.ids = max(s.ids/16, 1)
		return nil, s.read, false, nil
	case err == nil && all:
		s.window, s.ids = 0, 0
	case err == nil && most.last.id < math.MaxInt64:
		s.ids = min(2*s.ids, math.MaxInt64/4)
	case err == nil && s.window > math.MaxInt64/4: // it will look as far as there is
		s.window, s.ids = 0, 0
	case err == nil:
		s.window, s.ids = 2*s.window, 0
	}
	return rows, next, all, err
}

// upTo is how far the next read looks.
func (s *takerSession) upTo() outboxKey {
	past := s.read.past
	if s.window == 0 || past.xid >= math.MaxInt64-s.window {
		return lastOutboxKey
	}
	if s.ids == 0 {
		return outboxKey{past.xid + s.window, math.MaxInt64}
	}
	if past.id == math.MaxInt64 {
		past = outboxKey{xid: past.xid + 1}
	}
	if past.id >= math.MaxInt64-s.ids {
		return outboxKey{past.xid, math.MaxInt64}
	}
	return outboxKey{past.xid, past.id + s.ids}
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
	s.in.submit(&unit{events: events, taken: takenRows{u.keys, s.conn.server}, asked: done})
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
		s.failure = err
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
	if err := s.conn.wait(waiting); err != nil && waiting.Err() == nil {
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
	ctx, cancel := s.asking(ctx)
	defer cancel()
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

// leavingShards are shards from which a session takes no more, and which it holds until all that was put into the publisher
// up to mark is published.
type leavingShards struct {
	shards []int16
	mark   []int64
}

// share gives shards back that are beyond its share, or takes free ones up to it.
func (s *takerSession) share(ctx context.Context) error {
	if s.leaving != nil {
		return s.giveBack(ctx)
	}
	if time.Since(s.shared) < shareEvery {
		return nil
	}
	s.shared = time.Now()
	counting, cancel := s.asking(ctx)
	defer cancel()
	var takers int
	if err := s.conn.QueryRow(counting, outboxTakersSQL).Scan(&takers); err != nil {
		return fmt.Errorf("count the takers: %w", err)
	}
	takers = max(takers, 1)
	most := (outboxShards + takers - 1) / takers
	switch {
	case len(s.shards) > most:
		return s.leave(ctx, most)
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
	publisher := s.in.publisher
	for mark, asked := publisher.mark(), time.Now(); !publisher.reached(mark) && waiting.Err() == nil; pause(waiting, publishedPause) {
		if time.Since(asked) > takerStalls/3 { // it has not ceased to work
			if asked = time.Now(); s.conn.Ping(waiting) != nil {
				return
			}
		}
	}
}

// leave takes no more from the shards beyond the first so many, and gives them back as soon as it can.
func (s *takerSession) leave(ctx context.Context, most int) error {
	s.land()
	s.leaving = &leavingShards{shards: slices.Clone(s.shards[most:]), mark: s.in.publisher.mark()}
	s.shards = slices.Clone(s.shards[:most])
	s.show(len(s.shards), 0)
	return s.giveBack(ctx)
}

// giveBack gives back the shards that it leaves, if what was taken from them is published; otherwise it is to be called
// again.
func (s *takerSession) giveBack(ctx context.Context) error {
	if !s.in.publisher.reached(s.leaving.mark) {
		return nil
	}
	ctx, cancel := s.asking(ctx)
	defer cancel()
	shards := s.leaving.shards
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
	s.leaving = nil
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
	ctx, cancel := s.asking(ctx)
	defer cancel()
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
