package pipeline

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"
)

var (
	//go:embed sql/change_lanes.sql
	changeLanesSQL string
	//go:embed sql/count_waiting.sql
	countWaitingSQL string
)

// NotDrainedError says what is in the way of a change of the number of lanes.
type NotDrainedError struct {
	// Obstacles name what is there and what to do, each in a sentence.
	Obstacles []string
}

func (e *NotDrainedError) Error() string {
	return "the pipeline is not drained and stopped, and nothing was changed: " + strings.Join(e.Obstacles, "; ")
}

// LanesChanged says what ChangeLanes did.
type LanesChanged struct {
	// From and To are numbers of lanes. They are equal when Postgres had the number already: an
	// earlier change is finished, or there was nothing to do.
	From, To int
	// Consumers are the work queues of lanes that are no more, which were deleted.
	Consumers []string
	// Intruders are processes that started in the moment between the check and the change, and
	// may have the old number: what they are, and that they must be restarted.
	Intruders []string
}

// laneChange is one change of the number of lanes under way.
type laneChange struct {
	db    *pgx.Conn
	queue *Queue
	to    int
	log   func(string)
}

// ChangeLanes sets the number of lanes of a pipeline that is drained and stopped: no batch waits,
// no receipt is unsettled, and no ingest, emitter, forwarder or janitor is alive. Otherwise it changes
// nothing, and the error is a *NotDrainedError. progress is told, for people, what is waited
// for.
//
// Postgres changes in one transaction that lets nobody append from the check on. Before its
// commit the stream is marked as being changed, and no process starts any more, whatever it is
// configured for. Then consumers of lanes that are no more are deleted, and last the stream is
// marked with the new number. So whatever it dies of, running it again finishes it. The stream
// keeps its messages, for replay, under the lanes that they had. What is missing afterwards
// EnsureQueue creates.
func ChangeLanes(ctx context.Context, url string, queue *Queue, lanes int, progress func(string)) (LanesChanged, error) {
	if lanes < 1 || lanes > MaxLanes {
		return LanesChanged{}, fmt.Errorf("lanes: %d; want 1 to %d", lanes, MaxLanes)
	}
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return LanesChanged{}, errors.New("database url: cannot be parsed; want postgres://user:password@host:port/database")
	}
	cfg.RuntimeParams["lock_timeout"] = millis(laneLockTimeout)
	cfg.RuntimeParams["idle_in_transaction_session_timeout"] = millis(laneChangeTimeout)
	cfg.RuntimeParams["synchronous_commit"] = "on"
	db, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return LanesChanged{}, fmt.Errorf("connect to Postgres: %w", err)
	}
	defer func() { _ = db.Close(context.WithoutCancel(ctx)) }() // its transaction is over
	c := &laneChange{db: db, queue: queue, to: lanes, log: progress}
	return c.run(ctx)
}

const (
	// laneLockTimeout bounds the wait for the lock that lets nobody append: behind it appends
	// wait too.
	laneLockTimeout = 3 * time.Second
	// laneChangeTimeout bounds how long it is held.
	laneChangeTimeout = 30 * time.Second
	// waitingBatches is how many batches in the way are counted.
	waitingBatches = 10_000
)

func (c *laneChange) run(ctx context.Context) (LanesChanged, error) {
	done := LanesChanged{From: c.to, To: c.to}
	if err := c.alone(ctx); err != nil {
		return LanesChanged{}, err
	}
	if finished, err := c.finished(ctx); err != nil || finished {
		return done, err
	}
	// A process that has just started, or whose bucket was just made, says so within a TTL. So
	// the one look under the lock, which must be short, is the second.
	if err := c.awaitSilence(ctx); err != nil {
		return LanesChanged{}, err
	}
	var err error
	if done.From, err = c.inPostgres(ctx); err != nil {
		return LanesChanged{}, err
	}
	if done.Consumers, err = c.inQueue(ctx); err != nil {
		return done, fmt.Errorf("the database has %d lanes now and the queue not yet; run the same command again to finish: %w", c.to, err)
	}
	return done, c.intruders(ctx, &done)
}

// intruders looks once more for processes: one that read the old number just before the change
// says that it is alive within a TTL.
func (c *laneChange) intruders(ctx context.Context, done *LanesChanged) error {
	const act = "the lanes were changed; whether somebody started meanwhile with the old number is not known"
	if err := c.restABeat(ctx); err != nil {
		return fmt.Errorf(act+": %w", err)
	}
	alive, err := c.alive(ctx)
	if err != nil {
		return fmt.Errorf(act+": %w", err)
	}
	done.Intruders = alive
	return nil
}

// restABeat waits until whoever is alive must have said so.
func (c *laneChange) restABeat(ctx context.Context) error {
	_, ttl, err := c.queue.bucket(ctx, heartbeatsBucket)
	if err != nil {
		return fmt.Errorf("look for live processes: %w (with the present number of lanes, so that those that are alive can show)", err)
	}
	wait := ttl + ttl/3
	c.log(fmt.Sprintf("looking for processes for %v", wait.Round(100*time.Millisecond)))
	pause(ctx, wait)
	return ctx.Err()
}

// alone makes sure that nobody else changes the lanes as long as this connection lasts: the marks
// of two could cross. It waits a little, since Postgres may not have noticed yet that an earlier
// run has ended.
func (c *laneChange) alone(ctx context.Context) error {
	_, err := c.db.Exec(ctx, `SELECT pg_advisory_lock(hashtext('waybill change lanes'))`)
	if isLockTimeout(err) {
		return errors.New("somebody else is changing the number of lanes: wait for that to end")
	}
	if err != nil {
		return fmt.Errorf("look whether somebody else changes the lanes: %w", err)
	}
	return nil
}

// finished reports that both have the number already.
func (c *laneChange) finished(ctx context.Context) (bool, error) {
	var lanes int
	err := c.db.QueryRow(ctx, `SELECT lanes FROM waybill.pipeline`).Scan(&lanes)
	if err != nil {
		return false, fmt.Errorf("read the pipeline (`waybill migrate` without --change-lanes creates it): %w", err)
	}
	stream, err := c.queue.js.Stream(ctx, EventsStream)
	if err != nil {
		return false, fmt.Errorf("stream %s (`waybill migrate` with the present number of lanes, %d, creates it): %w", EventsStream, lanes, err)
	}
	return lanes == c.to && stream.CachedInfo().Config.Metadata[lanesMetadata] == strconv.Itoa(c.to), nil
}

// awaitSilence fails if a process is alive, now or within the TTL of heartbeats.
func (c *laneChange) awaitSilence(ctx context.Context) error {
	if err := c.silence(ctx); err != nil {
		return err
	}
	if err := c.restABeat(ctx); err != nil {
		return err
	}
	return c.silence(ctx)
}

func (c *laneChange) silence(ctx context.Context) error {
	alive, err := c.alive(ctx)
	if err == nil && len(alive) > 0 {
		err = &NotDrainedError{alive}
	}
	return err
}

// alive names the processes that say they are.
func (c *laneChange) alive(ctx context.Context) (obstacles []string, err error) {
	for _, kind := range Kinds() {
		live, err := LiveProcesses(ctx, c.queue, kind)
		if err != nil {
			return nil, fmt.Errorf("look for live processes: %w", err)
		}
		for _, h := range live {
			obstacles = append(obstacles, fmt.Sprintf("%s %s is alive (process %d on %s): stop it", kind, h.ID, h.PID, h.Host))
		}
	}
	holders, err := LaneHolders(ctx, c.queue)
	if err != nil {
		return nil, fmt.Errorf("look for leases: %w", err)
	}
	for place, h := range holders {
		if len(obstacles) == 0 {
			obstacles = append(obstacles, fmt.Sprintf("lane %d of %s is leased to forwarder %s: stop it, or wait until the lease ends", place.Lane, place.Sink, h.Forwarder))
		}
	}
	return obstacles, nil
}

// inPostgres checks everything under a lock that lets nobody append, and changes the number. It
// returns the number before.
func (c *laneChange) inPostgres(ctx context.Context) (from int, err error) {
	ctx, cancel := context.WithTimeout(ctx, laneChangeTimeout)
	defer cancel()
	tx, err := c.db.Begin(ctx)
	if err != nil {
		return 0, fmt.Errorf("change the lanes: %w", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // no effect after a commit
	if from, err = c.lock(ctx, tx); err != nil {
		return 0, err
	}
	if from == c.to {
		return from, nil // the rest of an earlier change; what waits now has the new lanes
	}
	obstacles, err := c.obstacles(ctx, tx)
	if err != nil {
		return 0, err
	}
	if len(obstacles) > 0 {
		return 0, &NotDrainedError{obstacles}
	}
	if err := c.mark(ctx, lanesChanging(from, c.to)); err != nil {
		return 0, err
	}
	if err := c.update(ctx, tx); err != nil {
		// Nothing was changed; if the mark stays, the command must be run again.
		return 0, errors.Join(err, c.mark(ctx, strconv.Itoa(from)))
	}
	if err := tx.Commit(ctx); err != nil {
		return 0, fmt.Errorf("whether the number of lanes was changed is not known; run the same command again: %w", err)
	}
	return from, nil
}

func (c *laneChange) update(ctx context.Context, tx pgx.Tx) error {
	// A process that got through all this with the old number must not append to a lane that
	// nobody serves.
	b := &pgx.Batch{}
	b.Queue(changeLanesSQL, c.to)
	b.Queue(`ALTER TABLE waybill.batches DROP CONSTRAINT IF EXISTS ` + laneConstraint)
	b.Queue(`ALTER TABLE waybill.batches ADD CONSTRAINT ` + laneConstraint + ` CHECK (lane < ` + strconv.Itoa(c.to) + `)`)
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("change the lanes, nothing was changed: %w", err)
	}
	return nil
}

// laneConstraint keeps batches out of lanes that the pipeline does not have.
const laneConstraint = "batches_lane_of_pipeline"

// lock lets nobody append and nobody else change the lanes, and returns their number.
func (c *laneChange) lock(ctx context.Context, tx pgx.Tx) (lanes int, err error) {
	if _, err := tx.Exec(ctx, `LOCK TABLE waybill.batches IN ACCESS EXCLUSIVE MODE`); err != nil {
		return 0, fmt.Errorf("lock the batches (is the database migrated, and does nobody use it?): %w", err)
	}
	err = tx.QueryRow(ctx, `SELECT lanes FROM waybill.pipeline FOR UPDATE`).Scan(&lanes)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, errors.New("the pipeline was not created yet: run `waybill migrate` without changing lanes")
	}
	if err != nil {
		return 0, fmt.Errorf("read the pipeline: %w", err)
	}
	return lanes, nil
}

// obstacles are what waits and who is alive, under the lock.
func (c *laneChange) obstacles(ctx context.Context, tx pgx.Tx) (out []string, err error) {
	rows, err := tx.Query(ctx, countWaitingSQL, waitingBatches)
	if err != nil {
		return nil, fmt.Errorf("look for batches that wait: %w", err)
	}
	var sink string
	var n int
	if _, err := pgx.ForEachRow(rows, []any{&sink, &n}, func() error {
		out = append(out, fmt.Sprintf("batches wait for %s (%d): start forwarders and a janitor with the old number and wait until `waybill status` shows none", sink, n))
		return nil
	}); err != nil {
		return nil, fmt.Errorf("look for batches that wait: %w", err)
	}
	alive, err := c.alive(ctx)
	if err != nil {
		return nil, err
	}
	paused, err := c.pausedSinks(ctx, tx)
	if err != nil {
		return nil, err
	}
	out = append(out, paused...)
	receipts, err := c.queue.unsettledReceipts(ctx)
	if err != nil {
		return nil, err
	}
	if receipts > 0 {
		alive = append(alive, fmt.Sprintf("receipts are not settled (%d): start a janitor with the old number, wait until it has settled them, and stop it", receipts))
	}
	return append(out, alive...), nil
}

// pausedSinks names the sinks of which single lanes are paused: under another number they would be
// other keys' lanes.
func (c *laneChange) pausedSinks(ctx context.Context, tx pgx.Tx) (obstacles []string, err error) {
	rows, err := tx.Query(ctx, `SELECT name FROM waybill.sinks ORDER BY name`)
	if err != nil {
		return nil, fmt.Errorf("read the sinks: %w", err)
	}
	sinks, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read the sinks: %w", err)
	}
	pauses, err := PausesOf(ctx, c.queue, sinks)
	if err != nil {
		return nil, err
	}
	for _, sink := range sinks {
		if len(pauses[sink].Lanes) > 0 {
			obstacles = append(obstacles, fmt.Sprintf("lanes of %s are paused: resume them with `waybill lanes resume --sink %s`", sink, sink))
		}
	}
	return obstacles, nil
}

// unsettledReceipts is the number of messages on RECEIPTS; none if there is no such stream.
func (q *Queue) unsettledReceipts(ctx context.Context) (uint64, error) {
	stream, err := q.js.Stream(ctx, ReceiptsStream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look for receipts: %w", err)
	}
	return stream.CachedInfo().State.Msgs, nil
}

// inQueue makes EVENTS fit: it deletes the work queues of lanes that are no more, and then says
// in the stream's metadata that all is done. Leases end by themselves, and cursors of the
// archive stay true: a lane that is no more keeps its objects.
func (c *laneChange) inQueue(ctx context.Context) (deleted []string, err error) {
	f, err := c.queue.readFloors(ctx)
	if err != nil {
		return nil, err
	}
	for name, info := range f.byName {
		sink := info.Config.Metadata[sinkMetadata]
		lane, err := strconv.Atoi(strings.TrimPrefix(name, sink+"-"))
		if sink == "" || err != nil || lane < c.to {
			continue
		}
		if err := c.queue.js.DeleteConsumer(ctx, EventsStream, name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return nil, fmt.Errorf("delete consumer %s: %w", name, err)
		}
		deleted = append(deleted, name)
	}
	return deleted, c.mark(ctx, strconv.Itoa(c.to))
}

// lanesChanging is what the stream is marked with while the number is being changed.
func lanesChanging(from, to int) string { return fmt.Sprintf("%d>%d", from, to) }

// mark writes the number of lanes, or what else is to stand there, into the stream's metadata.
func (c *laneChange) mark(ctx context.Context, lanes string) error {
	stream, err := c.queue.js.Stream(ctx, EventsStream)
	if err != nil {
		return fmt.Errorf("stream %s: %w", EventsStream, err)
	}
	cfg := stream.CachedInfo().Config
	metadata := map[string]string{}
	for k, v := range cfg.Metadata {
		if !strings.HasPrefix(k, "_nats.") { // the server's own
			metadata[k] = v
		}
	}
	metadata[lanesMetadata] = lanes
	cfg.Metadata = metadata
	if _, err := c.queue.js.UpdateStream(ctx, cfg); err != nil {
		return fmt.Errorf("mark stream %s with %s lanes: %w", EventsStream, lanes, err)
	}
	return nil
}
