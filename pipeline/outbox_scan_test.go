package pipeline

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// outboxWorld is a model of the outbox as Postgres has it: transactions that insert rows and commit in any
// order, and snapshots.
type outboxWorld struct {
	t       *testing.T
	random  *rand.Rand
	nextXID int64
	nextID  int64
	rows    []outboxWorldRow
	running []*worldSession // those that have a transaction with a number
	all     []*worldSession
}

// worldSession has one transaction after another.
type worldSession struct {
	n       int
	xid     int64 // 0: none yet
	emitted []outboxKey
}

type outboxWorldRow struct {
	key     outboxKey
	session int
	visible bool
	foreign bool // of another cluster
}

func newOutboxWorld(t *testing.T, seed uint64) *outboxWorld {
	w := &outboxWorld{t: t, random: rand.New(rand.NewPCG(seed, 1)), nextXID: 700, nextID: 1}
	for n := range 6 {
		w.all = append(w.all, &worldSession{n: n})
	}
	if w.random.IntN(4) == 0 { // restored from another cluster, whose numbers are far ahead, or behind, or the next ones here
		for i := range int64(1 + w.random.IntN(30)) {
			xid := int64(5_000_000)
			switch w.random.IntN(3) {
			case 0:
				xid = 3 + i
			case 1:
				xid = w.nextXID + w.random.Int64N(20)
			}
			w.rows = append(w.rows, outboxWorldRow{key: outboxKey{xid, w.nextID}, session: -1, visible: true, foreign: true})
			w.nextID++
		}
	}
	return w
}

// step lets a session do something.
func (w *outboxWorld) step() {
	s := w.all[w.random.IntN(len(w.all))]
	switch {
	case s.xid == 0 && w.random.IntN(2) == 0:
		w.nextXID++ // somebody else's transaction
	case s.xid == 0 || w.random.IntN(3) > 0:
		w.insert(s)
	default:
		w.end(s, w.random.IntN(4) > 0)
	}
}

func (w *outboxWorld) insert(s *worldSession) {
	if s.xid == 0 {
		s.xid = w.nextXID
		w.nextXID++
		w.running = append(w.running, s)
	}
	for range 1 + w.random.IntN(8) {
		key := outboxKey{s.xid, w.nextID}
		w.nextID++
		w.rows = append(w.rows, outboxWorldRow{key: key, session: s.n})
		s.emitted = append(s.emitted, key)
	}
}

func (w *outboxWorld) end(s *worldSession, commit bool) {
	for i := range w.rows {
		if r := &w.rows[i]; r.key.xid == s.xid && !r.foreign {
			r.visible = commit
		}
	}
	if !commit {
		w.rows = slices.DeleteFunc(w.rows, func(r outboxWorldRow) bool { return r.key.xid == s.xid && !r.foreign })
	}
	w.running = slices.DeleteFunc(w.running, func(other *worldSession) bool { return other == s })
	s.xid = 0
}

// read is what readOutbox does.
func (w *outboxWorld) read(scan outboxScan, most outboxLimits) (keys []outboxKey, next outboxScan, all bool) {
	var found []outboxKey
	for i := range w.rows {
		r := &w.rows[i]
		if !r.visible {
			continue
		}
		if slices.ContainsFunc(scan.open, func(o outboxKey) bool { return o.xid == r.key.xid && r.key.id > o.id }) {
			found = append(found, r.key)
		}
		if r.key.compare(scan.past) > 0 && r.key.compare(most.last) <= 0 {
			found = append(found, r.key)
		}
	}
	slices.SortFunc(found, outboxKey.compare)
	whole := len(found) < most.rows
	var rows []outboxRow
	for _, k := range found[:min(most.rows, len(found))] {
		rows = append(rows, outboxRow{key: k})
	}
	for _, r := range sortOutbox(rows) {
		keys = append(keys, r.key)
	}
	if len(slices.Compact(slices.Clone(keys))) < len(keys) {
		w.t.Fatalf("rows are read twice at once: %v, with %+v", keys, scan)
	}
	in := snapshot{xmax: w.nextXID}
	for _, s := range w.running {
		in.inProgress = append(in.inProgress, s.xid)
	}
	slices.Sort(in.inProgress)
	next, all = scan.afterRead(in, whole, keys, most.last)
	return keys, next, all
}

func (w *outboxWorld) remove(keys []outboxKey) {
	w.rows = slices.DeleteFunc(w.rows, func(r outboxWorldRow) bool { return slices.Contains(keys, r.key) })
}

// Invariant 12: whatever order transactions commit in, whatever a read is limited to, and wherever a unit fails, each
// row is taken once, and those of a session in its order.
func TestOutboxScanMissesNothing(t *testing.T) {
	for seed := range uint64(3000) {
		w := newOutboxWorld(t, seed)
		order := map[int][]outboxKey{} // taken, by session
		owner := map[outboxKey]int{}
		var scan, before outboxScan
		var flying []outboxKey
		land := func(ok bool) {
			if flying == nil {
				return
			}
			if !ok {
				scan, flying = before, nil
				return
			}
			for _, k := range flying {
				order[owner[k]] = append(order[owner[k]], k)
			}
			w.remove(flying)
			flying = nil
		}
		take := func(most outboxLimits) (found int) {
			for _, r := range w.rows {
				owner[r.key] = r.session
			}
			was := scan
			rows, next, _ := w.read(scan, most)
			scan = next
			rows = slices.DeleteFunc(rows, func(k outboxKey) bool { return slices.Contains(flying, k) })
			if len(rows) == 0 {
				return 0
			}
			if flying != nil {
				ok := w.random.IntN(5) > 0
				land(ok)
				if !ok {
					return len(rows)
				}
			}
			flying, before = rows, was
			return len(rows)
		}
		for range 200 {
			w.step()
			if w.random.IntN(3) == 0 {
				most := outboxLimits{rows: 1 + w.random.IntN(12), last: lastOutboxKey}
				switch w.random.IntN(8) {
				case 0, 1: // it reads of some transactions alone
					most.last.xid = scan.past.xid + 1 + w.random.Int64N(20)
				case 2: // it reads a part of one
					most.last = outboxKey{scan.past.xid, scan.past.id}
					if most.last.id == math.MaxInt64 {
						most.last = outboxKey{xid: scan.past.xid + 1}
					}
					most.last.id += 1 + w.random.Int64N(20)
				}
				take(most)
			}
			if w.random.IntN(6) == 0 {
				land(w.random.IntN(5) > 0)
			}
		}
		for _, s := range w.all {
			if s.xid != 0 {
				w.end(s, true)
			}
		}
		for quiet := 0; quiet < 3; quiet++ {
			if take(outboxLimits{rows: 5, last: lastOutboxKey}) > 0 {
				quiet = -1
			}
			land(true)
		}
		if len(w.rows) > 0 {
			t.Fatalf("seed %d: %d rows were never read, the first %+v; the scan is %+v", seed, len(w.rows), w.rows[0], scan)
		}
		for session, keys := range order {
			if session >= 0 && !slices.IsSortedFunc(keys, outboxKey.compare) {
				t.Fatalf("seed %d: session %d's rows were taken as %v", seed, session, keys)
			}
		}
		if len(scan.open) > len(w.running) {
			t.Fatalf("seed %d: %d transactions count as open, and %d run", seed, len(scan.open), len(w.running))
		}
	}
}

func TestParseSnapshot(t *testing.T) {
	for text, want := range map[string]snapshot{
		"10:10:":         {xmax: 10},
		"10:20:10,14,15": {xmax: 20, inProgress: []int64{10, 14, 15}},
	} {
		if got, err := parseSnapshot(text); err != nil || got.xmax != want.xmax || !slices.Equal(got.inProgress, want.inProgress) {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "1:2", "1:x:", "1:2:x"} {
		if got, err := parseSnapshot(text); err == nil {
			t.Errorf("%q is read as %+v", text, got)
		}
	}
}

func TestTextArray(t *testing.T) {
	s := mustStore(t)
	want := []string{"", `a"b`, `c\d`, "{e,f}", "NULL", "line\nbreak", "ä€"}
	var got []string
	if err := s.pool.QueryRow(t.Context(), `SELECT $1::text::text[]`, textArray(want)).Scan(&got); err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
	var numbers []int32
	if err := s.pool.QueryRow(t.Context(), `SELECT $1::text::integer[]`, integerArray([]int32{1, -2, 3})).Scan(&numbers); err != nil || fmt.Sprint(numbers) != "[1 -2 3]" {
		t.Errorf("%v, %v", numbers, err)
	}
}
