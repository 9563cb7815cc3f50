package bench

import (
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/internal/pgtest"
)

func mustConnect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := connectTo(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	return conn
}

func mustRun(t *testing.T, conn *pgx.Conn, statements ...string) {
	t.Helper()
	if err := execAll(t.Context(), conn, "test", statements...); err != nil {
		t.Fatal(err)
	}
}

// mustRace lets some writers race for some keys, for a moment.
func mustRace(t *testing.T, url string) *headRace {
	t.Helper()
	r, err := newHeadRace(Load{Name: "race", Bytes: 64, Events: 3, Keys: 4, Callers: 4, For: 200 * time.Millisecond}, url)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestHeadsAreJudged: what writers leave behind has neither forks nor gaps, and whatever is wrong with
// it is found.
func TestHeadsAreJudged(t *testing.T) {
	url := pgtest.New(t)
	r := mustRace(t, url)
	conn := mustConnect(t, url)
	v, err := judgeHeads(t.Context(), conn, "race", r.ledger)
	if err != nil {
		t.Fatal(err)
	}
	if !v.OK() || v.Heads.Keys != 4 || v.Accepted == 0 || v.Pending != v.Accepted {
		t.Errorf("%v", v)
	}
	values := r.values()
	if values["flushes"] <= 0 || values["events"] != 3*values["flushes"] || values["p50"] <= 0 || values["failed flushes"] != 0 {
		t.Errorf("%+v", values)
	}
	if _, looked := values["writers waiting"]; !looked {
		t.Errorf("nobody looked who waits: %+v", values)
	}
	for name, test := range wrongHeads {
		test.mustBeFound(t, name, conn, r.ledger)
	}
}

// wrongHead is something that is wrong with the seqnums.
type wrongHead struct {
	sql                        string
	forks, gaps, lost, doubled int64 // forks -1: one of each event
}

var wrongHeads = map[string]wrongHead{
	"a gap at the end":     {`DELETE FROM waybill.events WHERE position = (SELECT max(position) FROM waybill.events)`, 0, 1, 1, 0},
	"a fork":               {`UPDATE waybill.events SET seqnum = 1 WHERE position = (SELECT position FROM waybill.events WHERE seqnum = 2 ORDER BY position LIMIT 1)`, 1, 1, 0, 0},
	"a head that was left": {`UPDATE waybill.heads SET seqnums[1] = seqnums[1] - 1 WHERE page = 0`, 1, 0, 0, 0},
	"a head that ran":      {`UPDATE waybill.heads SET seqnums[1] = seqnums[1] + 2 WHERE page = 0`, 0, 2, 0, 0},
	"a lost head":          {`DELETE FROM waybill.heads`, -1, 0, 0, 0}, // each seqnum may be given out again
	"an event that is stored twice": {`INSERT INTO waybill.events SELECT 0, source, type, event_id, seqnum, event FROM waybill.events
			WHERE position = (SELECT max(position) FROM waybill.events)`, 1, 0, 0, 1},
}

// mustBeFound breaks the rows for a moment: it is found, and the run is not OK.
func (w wrongHead) mustBeFound(t *testing.T, name string, conn *pgx.Conn, l *ledger) {
	t.Helper()
	mustRun(t, conn, "BEGIN", w.sql)
	defer mustRun(t, conn, "ROLLBACK")
	v, err := judgeHeads(t.Context(), conn, "race", l)
	if err != nil {
		t.Fatal(err)
	}
	if w.forks < 0 {
		w.forks = v.Accepted
	}
	if v.OK() || v.Heads.Forks != w.forks || v.Heads.Gaps != w.gaps || v.Lost != w.lost || v.Doubled != w.doubled {
		t.Errorf("%s: %v", name, v)
	}
	if !strings.Contains(v.String(), "NOT OK") || !strings.Contains(v.String(), v.Heads.String()) {
		t.Errorf("%s: %s", name, v)
	}
}

// TestHeadsRow: medians, and what went wrong in any of the runs.
func TestHeadsRow(t *testing.T) {
	runs := []map[string]float64{
		{"events": 10, "deadlocks": 0, "failed flushes": 0, "p99": 3},
		{"events": 30, "deadlocks": 1, "failed flushes": 0, "p99": 1},
		{"events": 20, "deadlocks": 0, "failed flushes": 2, "p99": 2},
	}
	want := map[string]float64{"events": 20, "events, lowest": 10, "events, highest": 30, "deadlocks": 1, "failed flushes": 2, "p99": 2}
	if row := headsRow("load", runs); !maps.Equal(row.Values, want) {
		t.Errorf("%v; want %v", row.Values, want)
	}
}

func TestHeadsLoadsAreAsSet(t *testing.T) {
	writers, keys := 3, 7
	for i, load := range headsLoads(Settings{Callers: &writers, Keys: &keys}) {
		want := []struct{ writers, keys int }{{1, 1}, {3, 1}, {3, 7}}[i%3]
		if load.Callers != want.writers || load.Keys != want.keys {
			t.Errorf("load %d: %+v", i, load)
		}
	}
}
