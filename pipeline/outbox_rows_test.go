package pipeline

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// Invariant 12: a row of which no event can be made stays, with a reason, is shown, and holds up nobody; once
// mended it is put back.
func TestRowsThatAreNoEventStay(t *testing.T) {
	r := mustRig(t)
	r.stop()
	in, _ := r.mustIngesterAt(t, r.url, func(c *IngesterConfig) { c.Outbox.MaxEventBytes = 10_000 })
	s := mustService(t, r.url)
	good := mustEvent(t, "/s", "t", "good")
	tx := s.mustBegin(t)
	for _, row := range []string{
		`('/s', 't', 'garbage', 'ff', NULL, NULL, NULL)`,
		fmt.Sprintf(`('/s', 't', 'another id', '%x', NULL, NULL, NULL)`, good.Encoded),
		`('/s', 't', '', NULL, NULL, NULL, NULL)`,
		`('/s', 't', 'not text', NULL, 'ff', true, NULL)`,
		`('/s', 't', 'attribute', NULL, NULL, NULL, '{"a": [1]}')`,
		`('/s', 't', 'attributes', NULL, NULL, NULL, '[1]')`,
		`('/s', 't', 'time', NULL, NULL, NULL, '{"time": "today"}')`,
		`('/s', 't', 'subject', NULL, NULL, NULL, '{"subject": 1}')`,
		`('a b:', 't', 'source', NULL, NULL, NULL, NULL)`,
	} {
		mustExec(t, tx, `INSERT INTO waybill.outbox (source, type, event_id, event, data, is_text, attributes)
			SELECT v.source, v.type, v.id, decode(v.event, 'hex'), decode(v.data, 'hex'), v.is_text, v.attributes::jsonb
			FROM (VALUES `+row+`, (NULL, NULL, NULL, NULL::text, NULL::text, NULL::boolean, NULL::text)) AS v(source, type, id, event, data, is_text, attributes) WHERE v.source IS NOT NULL`)
	}
	mustEmitIn(t, tx, testCloudEvent("/s", "fine"), CloudEvent{Source: "/s", Type: "t", ID: "too large here", Data: BinaryData(make([]byte, 10_000))})
	mustCommit(t, tx)
	s.mustEmit(t, testCloudEvent("/s", "later"))
	awaitTaken(t, r.store)
	if got := storedIDs(t, r.store)["/s"]; !slices.Equal(got, []string{"fine", "later"}) {
		t.Fatalf("stored %v", got)
	}
	survey, err := r.store.SurveyOutbox(t.Context(), OutboxSurvey{})
	if err != nil || survey.Refused != 10 || survey.Waiting != 0 || survey.Reason == "" {
		t.Fatalf("survey %+v, %v", survey, err)
	}
	if text := fmt.Sprint(survey.Trouble()); !strings.Contains(text, fmt.Sprintf("SELECT waybill.outbox_retry(%d)", survey.FirstRefused)) {
		t.Errorf("the remedy is missing: %s", text)
	}
	if n := mustCount(t, r.store, `SELECT count(*) FROM waybill.outbox WHERE reason LIKE '%limit is 10000%'`); n != 1 {
		t.Error("the reason of the event that is too large does not say so")
	}
	mustExec(t, r.store.pool, `UPDATE waybill.outbox SET data = 'text' WHERE event_id = 'not text'`)
	mustExec(t, r.store.pool, `SELECT waybill.outbox_retry(id) FROM waybill.outbox WHERE event_id = 'not text'`)
	awaitTaken(t, r.store)
	if got := storedIDs(t, r.store)["/s"]; len(got) != 3 || !slices.Contains(got, "not text") {
		t.Fatalf("after it was put back: stored %v", got)
	}
	if in.OutboxProblem() != nil {
		t.Error("a refused row is no problem of the process")
	}
}

// A row whose event Postgres itself refuses is found among others, and stays alone.
func TestARowThatPostgresRefuses(t *testing.T) {
	r := mustRig(t)
	mustExec(t, r.store.pool, `ALTER TABLE waybill.events ADD CHECK (event_id <> 'poison')`)
	var events []CloudEvent
	var want []string
	for i := range 20 {
		if i == 7 {
			events = append(events, testCloudEvent("/s", "poison"))
		}
		events, want = append(events, testCloudEvent("/s", fmt.Sprint(i))), append(want, fmt.Sprint(i))
	}
	s := mustService(t, r.url)
	s.mustEmit(t, events...)
	awaitTaken(t, r.store)
	s.mustEmit(t, testCloudEvent("/s", "later"))
	awaitTaken(t, r.store)
	if got := storedIDs(t, r.store)["/s"]; !slices.Equal(got, append(want, "later")) {
		t.Fatalf("stored %v", got)
	}
	if n := mustCount(t, r.store, `SELECT count(*) FROM waybill.outbox WHERE event_id = 'poison' AND refused_at IS NOT NULL`); n != 1 {
		t.Fatal("the row is not there, or not marked")
	}
}

// A survey tells what waits and for how long, and looks past what is gone.
func TestSurveyOutbox(t *testing.T) {
	r := mustRig(t)
	r.stop()
	s := mustService(t, r.url)
	open := s.mustBegin(t)
	mustEmitIn(t, open, testCloudEvent("/s", "open"))
	s.mustEmit(t, testCloudEvent("/s", "a"), testCloudEvent("/s", "b"))
	mustExec(t, r.store.pool, `UPDATE waybill.outbox SET emitted_at = now() - interval '2 minutes' WHERE event_id = 'a'`)
	var survey OutboxSurvey
	look := func(waiting int64) {
		t.Helper()
		var err error
		if survey, err = r.store.SurveyOutbox(t.Context(), survey); err != nil || survey.Waiting != waiting {
			t.Fatalf("survey %+v, %v; want %d that wait", survey, err, waiting)
		}
	}
	look(2)
	if survey.Oldest < 2*time.Minute || survey.Trouble() == nil {
		t.Fatalf("the oldest is %v old: %v", survey.Oldest, survey.Trouble())
	}
	mustExec(t, r.store.pool, `DELETE FROM waybill.outbox`)
	look(0)
	if survey.Trouble() != nil {
		t.Errorf("an empty outbox: %v", survey.Trouble())
	}
	mustCommit(t, open)
	look(1)
	s.mustEmit(t, testCloudEvent("/s", "c"))
	look(2)
	look(2)
}

// What is larger than any event does not get in, whoever inserts it: a taker would load it to find that it is none.
func TestTheOutboxRefusesWhatIsTooLarge(t *testing.T) {
	s := mustService(t, mustRig(t).url)
	large := func(n int) string { return fmt.Sprintf(`repeat('x', %d)`, n) }
	for column, sql := range map[string]string{
		"source":     `INSERT INTO waybill.outbox (source, type, event_id) VALUES (` + large(1025) + `, 't', 'i')`,
		"type":       `INSERT INTO waybill.outbox (source, type, event_id) VALUES ('/s', ` + large(513) + `, 'i')`,
		"event_id":   `INSERT INTO waybill.outbox (source, type, event_id) VALUES ('/s', 't', ` + large(1025) + `)`,
		"event":      `SELECT waybill.emit_encoded('{/s}', '{t}', '{i}', '{8388608}', convert_to(` + large(8<<20) + `, 'UTF8'))`,
		"second":     `SELECT waybill.emit_encoded('{/s,/s}', '{t,t}', '{i,j}', '{1,8388608}', convert_to(` + large(8<<20+1) + `, 'UTF8'))`,
		"data":       `INSERT INTO waybill.outbox (source, type, event_id, data) VALUES ('/s', 't', 'i', convert_to(` + large(1<<20+1) + `, 'UTF8'))`,
		"attributes": `INSERT INTO waybill.outbox (source, type, event_id, attributes) VALUES ('/s', 't', 'i', jsonb_build_object('a', ` + large(3<<20) + `))`,
	} {
		var refused *pgconn.PgError
		if _, err := s.pool.Exec(t.Context(), sql); !errors.As(err, &refused) || refused.ConstraintName != "outbox_size" {
			t.Errorf("%s: %v", column, err)
		}
	}
}
