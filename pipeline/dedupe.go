package pipeline

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// DefaultDedupeWindow is how long a pipeline remembers what it accepted, unless it is created
// otherwise; docs/performance.md says what that costs.
const DefaultDedupeWindow = 10 * time.Minute

// DefaultDedupeBytes is what one ingest remembers it in: at least 1.6 million events.
const DefaultDedupeBytes = 32 << 20

// Why an attempt to append was taken back. Nothing was stored.
var (
	errAcceptedBefore = errors.New("another ingest has accepted some of the events")
	errServerChanged  = errors.New("this is not the server, or not the run of it, that the log was read from")
)

// A deduper knows what was accepted within the window, by any ingest, so that an event that
// comes again is not stored again.
//
// The truth is the log in Postgres: each flush puts one row into it, in its own transaction,
// and, once it has locked the heads of its keys, reads the rows that became visible since an
// earlier snapshot. To be stored twice an event needs two transactions. Both lock the head of
// its key, so the later one sees the row of the earlier one, and is taken back.
// docs/decisions/0005 has the proof.
//
// A deduper belongs to one goroutine, which runs one transaction after another.
type deduper struct {
	store *Store
	set   *fingerprintSet

	// server is when the server started that the set was read from; zero: it was not read.
	// readAt is when the log was last read.
	server time.Time
	readAt time.Time
	// newest is the snapshot of the last transaction that is known to be committed, safe that
	// of the one before it, and the log is read from there on. No transaction number below the
	// end of safe can be given out again, since a later one was committed. Of newest that is
	// not so: a crash could make the server give some out anew, and their rows would pass for
	// rows that were seen.
	safe, newest string
	own          [2]string // the last two transactions that are known to be committed
	// Of the transaction under way: its number and the snapshot in which it read the log.
	xid, snapshot string
	// news counts the fingerprints that it read and that are not of the set before.
	news int
	// refused is when Postgres last refused a flush in one round trip. For a pause after that,
	// flushes take two.
	refused time.Time
	pause   time.Duration

	among map[Fingerprint]struct{} // of fresh, kept for its memory

	size, lost atomic.Int64 // for the metrics: entries, and set.lost in Unix nanoseconds
}

// The log is read at least every catchUpEvery, and anew as a whole, as far as there is room,
// after it was not for maxBehind: other ingests may have written more than one statement can
// bring.
const (
	catchUpEvery = 5 * time.Second
	maxBehind    = 30 * time.Second
	loadTimeout  = 10 * time.Second // a process that is to stop may have to wait for it
)

// newDeduper returns a deduper, or nil where the pipeline remembers nothing.
func newDeduper(store *Store, maxBytes int) *deduper {
	if store.DedupeWindow() == 0 {
		return nil
	}
	return &deduper{
		store: store, set: newFingerprintSet(store.DedupeWindow(), maxBytes), among: map[Fingerprint]struct{}{},
		pause: guardPause,
	}
}

// learnt reports whether one of the events, none of which was known, was in what was read.
func (d *deduper) learnt(events []Event) bool {
	if d.news == 0 {
		return false
	}
	for i := range events {
		if d.set.has(events[i].Fingerprint) {
			return true
		}
	}
	return false
}

// fresh returns the events that were not accepted before, each once, in order.
func (d *deduper) fresh(events []Event) []Event {
	clear(d.among)
	first := -1 // of those that are left out
	var out []Event
	for i := range events {
		f := events[i].Fingerprint
		before := len(d.among)
		d.among[f] = struct{}{}
		switch known := len(d.among) == before || d.set.has(f); {
		case known && first < 0:
			first = i
			out = append(out, events[:i]...)
		case !known && first >= 0:
			out = append(out, events[i])
		}
	}
	if first < 0 {
		return events
	}
	return out
}

// readArgs are the parameters of the statement that reads the log.
func (d *deduper) readArgs() []any {
	own := make([]string, 0, len(d.own))
	for _, xid := range d.own {
		if xid != "" {
			own = append(own, xid)
		}
	}
	return []any{d.safe, own}
}

// read takes what the statement found into the set: it is committed, whatever becomes of the
// transaction that reads it.
func (d *deduper) read(rows pgx.Rows) error {
	defer rows.Close()
	now := time.Now()
	d.news = 0
	for rows.Next() {
		var server time.Time
		var fingerprints []byte
		if err := rows.Scan(&d.snapshot, &server, &d.xid, &fingerprints); err != nil {
			return err
		}
		if !server.Equal(d.server) {
			d.server = time.Time{}
			return errServerChanged
		}
		d.add(fingerprints, now)
	}
	return rows.Err()
}

// add puts a row of the log into the set.
func (d *deduper) add(fingerprints []byte, at time.Time) {
	for ; len(fingerprints) >= fingerprintBytes; fingerprints = fingerprints[fingerprintBytes:] {
		if d.set.add(Fingerprint(fingerprints[:fingerprintBytes]), at) {
			d.news++
		}
	}
}

// committed notes that the transaction under way was committed, with the given events. After
// any other end it must not be called: an event whose outcome is unknown must not be answered
// for by its retry, and its row, if there is one, must be read.
func (d *deduper) committed(events []Event, began time.Time) {
	now := time.Now()
	for i := range events {
		d.set.add(events[i].Fingerprint, now)
	}
	d.safe, d.newest = d.newest, d.snapshot
	d.own[0], d.own[1] = d.own[1], d.xid
	d.readAt = began
	d.show()
}

// show makes the state of the set known to the metrics.
func (d *deduper) show() {
	d.size.Store(int64(d.set.len()))
	if !d.set.lost.IsZero() {
		d.lost.Store(d.set.lost.UnixNano())
	}
}

// state returns the number of events that are remembered, and for how long. It may be called
// by any goroutine.
func (d *deduper) state() (events int64, covers time.Duration) {
	covers = d.store.DedupeWindow()
	if lost := d.lost.Load(); lost != 0 {
		covers = min(covers, time.Since(time.Unix(0, lost)))
	}
	return d.size.Load(), covers
}

// ready loads the log if that was not done, or not lately.
func (d *deduper) ready(ctx context.Context) error {
	if !d.server.IsZero() && time.Since(d.readAt) < maxBehind {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	if err := d.load(ctx); err != nil {
		return fmt.Errorf("%w: load the log of accepted events: %w", ErrUnavailable, err)
	}
	return nil
}
