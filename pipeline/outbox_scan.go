package pipeline

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// outboxKey is the primary key of a row of the outbox: the transaction that emitted it, and a
// number that orders the rows of one transaction.
type outboxKey struct{ xid, id int64 }

func (k outboxKey) compare(other outboxKey) int {
	return cmp.Or(cmp.Compare(k.xid, other.xid), cmp.Compare(k.id, other.id))
}

// outboxScan is what a taker has read of the outbox: every row that is visible up to past, but for
// those of the transactions in open, which were in progress when they were looked for, and of which
// it has read what is up to an id of theirs. The zero value has read nothing.
//
// So a read looks at two ranges of the primary key, and finds exactly what it had not seen: it never
// walks over rows that earlier reads have found and that are deleted since. It misses nothing, because
// a row that becomes visible after a snapshot is of a transaction that was in progress in it, or had
// not begun; it gives the rows of one session in order, because it gives all that is visible, in the
// order of transactions and of ids, and a session's next transaction begins when the one before is
// visible (docs/decisions/0011-an-outbox-read-by-transaction-numbers.md).
//
// It is of one run of one server: a crash may give numbers of transactions out again.
type outboxScan struct {
	past outboxKey
	open []outboxKey // by xid
}

// none reports whether nothing was read.
func (s outboxScan) none() bool { return s.past == outboxKey{} && len(s.open) == 0 }

// snapshot is a pg_snapshot: transactions below xmax are visible unless they are in progress.
type snapshot struct {
	xmax       int64
	inProgress []int64 // ascending
}

// parseSnapshot reads the text of a pg_snapshot: xmin:xmax:in,progress.
func parseSnapshot(text string) (snapshot, error) {
	parts := strings.Split(text, ":")
	if len(parts) != 3 {
		return snapshot{}, fmt.Errorf("snapshot %q: want xmin:xmax:in,progress", text)
	}
	var s snapshot
	var err error
	if s.xmax, err = strconv.ParseInt(parts[1], 10, 64); err != nil {
		return snapshot{}, fmt.Errorf("snapshot %q: xmax: %w", text, err)
	}
	if parts[2] == "" {
		return s, nil
	}
	for xid := range strings.SplitSeq(parts[2], ",") {
		n, err := strconv.ParseInt(xid, 10, 64)
		if err != nil {
			return snapshot{}, fmt.Errorf("snapshot %q: a transaction in progress: %w", text, err)
		}
		s.inProgress = append(s.inProgress, n)
	}
	slices.Sort(s.inProgress)
	return s, nil
}

// openColumns are the parameters of outbox_read.sql for the transactions in open.
func (s outboxScan) openColumns() (xids, ids []int64) {
	xids, ids = make([]int64, len(s.open)), make([]int64, len(s.open))
	for i, o := range s.open {
		xids[i], ids[i] = o.xid, o.id
	}
	return xids, ids
}

// lastOutboxKey is not before any other.
var lastOutboxKey = outboxKey{math.MaxInt64, math.MaxInt64}

// afterRead returns what is read once a read of what is not beyond most, in a snapshot, has found rows, and whether that is
// all there is. whole: there are no others up to there.
func (s outboxScan) afterRead(in snapshot, whole bool, rows []outboxKey, most outboxKey) (next outboxScan, all bool) {
	var last outboxKey
	switch {
	case whole:
		last = most
	case len(rows) > 0:
		last = rows[len(rows)-1]
	}
	all = whole && most == lastOutboxKey
	return s.after(in, all, last), all
}

// after returns what is read once a read in a snapshot has found all there was (all), or else all
// there was up to the row last.
func (s outboxScan) after(in snapshot, all bool, last outboxKey) outboxScan {
	// Numbers from xmax on are of another cluster, whose rows were restored here: they are read each time until
	// they are gone, since what this one has yet to give out comes before them.
	if all || last.xid >= in.xmax {
		next := outboxScan{past: outboxKey{in.xmax - 1, math.MaxInt64}}
		for _, xid := range in.inProgress {
			next.open = append(next.open, outboxKey{xid: xid})
		}
		return next
	}
	next := outboxScan{past: s.past}
	if last.compare(s.past) > 0 {
		next.past = last
	}
	was := func(xid int64) (outboxKey, bool) {
		i, found := slices.BinarySearchFunc(s.open, xid, func(o outboxKey, xid int64) int { return cmp.Compare(o.xid, xid) })
		if !found {
			return outboxKey{}, false
		}
		return s.open[i], true
	}
	// Those that are still in progress, up to past: beyond it nothing counts as read.
	for _, xid := range in.inProgress {
		if xid > next.past.xid {
			continue
		}
		o, _ := was(xid)
		next.open = append(next.open, outboxKey{xid, o.id})
	}
	// Those that have ended, and of which there may be more than was read.
	for _, o := range s.open {
		if _, running := slices.BinarySearch(in.inProgress, o.xid); running || o.xid < last.xid || o.xid > next.past.xid {
			continue
		}
		if o.xid == last.xid {
			o.id = max(o.id, last.id)
		}
		next.open = append(next.open, o)
	}
	slices.SortFunc(next.open, outboxKey.compare)
	return next
}
