package pipeline

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/waybillhq/waybill/internal/pgtest"
)

// What waybill.emit is given becomes the event that EmitTx makes of the same.
func TestEmitInSQL(t *testing.T) {
	r := mustRig(t)
	s := mustService(t, r.url)
	at := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	for name, c := range map[string]struct {
		call string
		want CloudEvent
	}{
		"jsonb": {`'/jsonb', 't', jsonb_build_object('n', 1), id => 'i'`, CloudEvent{DataContentType: "application/json", Data: BinaryData([]byte(`{"n": 1}`))}},
		"text":  {`'/text', 't', 'über', id => 'i'`, CloudEvent{Data: TextData("über")}},
		"bytea": {`'/bytea', 't', '\x0001ff'::bytea, id => 'i'`, CloudEvent{Data: BinaryData([]byte{0, 1, 255})}},
		"none":  {`'/none', 't', NULL, id => 'i'`, CloudEvent{}},
		"empty": {`'/empty', 't', '', id => 'i'`, CloudEvent{Data: TextData("")}},
		"all": {
			`'/all', 't', '<a/>'::text, id => 'i', subject => '17', "time" => '2026-01-02 04:04:05.000006+01', datacontenttype => 'text/xml; charset="utf-8"',
				dataschema => 'https://example.com/x', extensions => '{"tenant": "a", "priority": 3, "urgent": true, "seqnum": "5"}'`,
			CloudEvent{
				Subject: "17", Time: at, DataContentType: `text/xml; charset="utf-8"`, DataSchema: "https://example.com/x", Data: TextData("<a/>"),
				Extensions: map[string]AttributeValue{"tenant": StringValue("a"), "priority": IntegerValue(3), "urgent": BooleanValue(true), "seqnum": StringValue("5")},
			},
		},
	} {
		want := c.want
		want.Source, want.Type, want.ID = "/"+name, "t", "i"
		var id string
		if err := s.pool.QueryRow(t.Context(), `SELECT waybill.emit(`+c.call+`)`).Scan(&id); err != nil || id != "i" {
			t.Fatalf("%s: %q, %v", name, id, err)
		}
		awaitTaken(t, r.store)
		event, err := encodeEmitted(t.Context(), &want, DefaultMaxEventBytes, "")
		if err != nil {
			t.Fatal(err)
		}
		assertSameEvent(t, name, mustStored(t, r.store, want.Source), event.Encoded)
	}
	var ids [2]string
	if err := s.pool.QueryRow(t.Context(), `SELECT waybill.emit('/s', 't', 'x'), waybill.emit('/s', 't', 'x')`).Scan(&ids[0], &ids[1]); err != nil || len(ids[0]) != 36 || ids[0] == ids[1] {
		t.Fatalf("ids %q, %v", ids, err)
	}
}

// Data of other types than emit takes is no function that Postgres knows, and the casts that docs/outbox.md names help.
func TestDataOfOtherTypes(t *testing.T) {
	s := mustService(t, mustRig(t).url)
	for data, cast := range map[string]string{`json_build_object('n', 1)`: `json_build_object('n', 1)::jsonb`, `5`: `to_jsonb(5)`, `ARRAY[1, 2]`: `to_jsonb(ARRAY[1, 2])`} {
		_, err := s.pool.Exec(t.Context(), `SELECT waybill.emit('/s', 't', `+data+`)`)
		if err == nil || !strings.Contains(err.Error(), "function waybill.emit(") || !strings.Contains(err.Error(), "does not exist") {
			t.Errorf("%s: %v", data, err)
		}
		mustExec(t, s.pool, `SELECT waybill.emit('/s', 't', `+cast+`)`)
	}
}

// A database without an outbox, and a role without the right, are errors that say what to do, through both drivers' interfaces.
func TestEmitTxSaysWhatIsMissing(t *testing.T) {
	event := testCloudEvent("/s", "1")
	for name, c := range map[string]struct{ url, begin, want string }{
		"not migrated": {pgtest.NewEmpty(t), `SELECT 1`, "run `waybill migrate` on that"},
		"no right":     {pgtest.New(t), `CREATE ROLE waybill_test_no_right; SET LOCAL ROLE waybill_test_no_right`, "grant the role USAGE on the schema waybill"},
	} {
		t.Run(name, func(t *testing.T) {
			s := mustService(t, c.url)
			tx := s.mustBegin(t)
			if _, err := tx.Exec(t.Context(), c.begin); err != nil {
				t.Fatal(err)
			}
			var refused *pgconn.PgError
			if err := EmitTx(t.Context(), tx, event); !errors.As(err, &refused) || !strings.HasSuffix(err.Error(), c.want) {
				t.Errorf("EmitTx: %v", err)
			}
			if err := tx.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			db := stdlib.OpenDBFromPool(s.pool)
			defer db.Close()
			plain, err := db.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer plain.Rollback()
			if _, err := plain.ExecContext(t.Context(), c.begin); err != nil {
				t.Fatal(err)
			}
			if err := EmitSQLTx(t.Context(), plain, event); !errors.As(err, &refused) || !strings.HasSuffix(err.Error(), c.want) {
				t.Errorf("EmitSQLTx: %v", err)
			}
		})
	}
}

// A trigger emits for each row that changes, and not for those whose transaction is rolled back.
func TestEmitFromATrigger(t *testing.T) {
	r := mustRig(t)
	s := mustService(t, r.url)
	mustExec(t, s.pool, `CREATE FUNCTION public.order_changed() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			PERFORM waybill.emit('/orders', 'com.example.order.' || lower(TG_OP), to_jsonb(NEW), subject => NEW.id::text, id => TG_OP || '-' || NEW.id);
			RETURN NULL;
		END $$`)
	mustExec(t, s.pool, `CREATE TRIGGER order_changed AFTER INSERT OR UPDATE ON public.orders FOR EACH ROW EXECUTE FUNCTION public.order_changed()`)
	mustExec(t, s.pool, `INSERT INTO public.orders SELECT i::text FROM generate_series(1, 3) AS i`)
	mustExec(t, s.pool, `BEGIN; INSERT INTO public.orders VALUES ('4'); ROLLBACK`)
	mustExec(t, s.pool, `UPDATE public.orders SET id = '9' WHERE id = '3'`)
	awaitTaken(t, r.store)
	assertStored(t, r.store, []string{"INSERT-1", "INSERT-2", "INSERT-3", "UPDATE-9"})
}

// Nothing invalid is ever committed: the error names the argument and says what to do.
func TestEmitInSQLRefuses(t *testing.T) {
	s := mustService(t, mustRig(t).url)
	for call, want := range map[string]string{
		`NULL, 't', 'x'`:                                                              "source: is required",
		`'', 't', 'x'`:                                                                "source: is required",
		`'a b', 't', 'x'`:                                                             "source: 'a b' is not a URI reference",
		`'/s', NULL, 'x'`:                                                             "type: is required",
		`'/s', '', 'x'`:                                                               "type: is required",
		`'/s', 't', 'x', ''`:                                                          "id: is empty",
		`repeat('s', 1025), 't', 'x'`:                                                 "source: is 1025 bytes; the limit is 1024",
		`'/s', repeat('t', 513), 'x'`:                                                 "type: is 513 bytes; the limit is 512",
		`'/s', 't', 'x', repeat('i', 1025)`:                                           "id: is 1025 bytes; the limit is 1024",
		`'/s', 't', 'x', subject => ''`:                                               "subject: is empty",
		`'/s', 't', 'x', "time" => 'infinity'`:                                        "time: is infinity",
		`'/s', 't', 'x', "time" => '0001-01-01 00:00:00 BC'`:                          "time: is 0001",
		`'/s', 't', 'x', "time" => '12026-01-01'`:                                     "time: is 12026",
		`'/s', 't', 'x', datacontenttype => 'json'`:                                   "datacontenttype: 'json' is not a media type",
		`'/s', 't', 'x', datacontenttype => 'text/plain; a=1; A=2'`:                   "datacontenttype: ",
		`'/s', 't', 'x', dataschema => ''`:                                            "dataschema: '' is not a URI",
		`'/s', 't', 'x', dataschema => '%zz'`:                                         "dataschema: '%zz' is not a URI",
		`'/s', 't', 'x', extensions => '[1]'`:                                         "extensions: is a JSON array",
		`'/s', 't', 'x', extensions => '{"a_b": 1}'`:                                  "extensions: 'a_b'; attribute names",
		`'/s', 't', 'x', extensions => '{"": 1}'`:                                     "extensions: ''; attribute names",
		`'/s', 't', 'x', extensions => '{"subject": "x"}'`:                            "extensions: 'subject' is not an extension",
		`'/s', 't', 'x', extensions => '{"specversion": "0.3"}'`:                      "extensions: 'specversion' is not an extension",
		`'/s', 't', 'x', extensions => '{"a": null}'`:                                 "extensions: 'a' is a JSON null",
		`'/s', 't', 'x', extensions => '{"a": {}}'`:                                   "extensions: 'a' is a JSON object",
		`'/s', 't', 'x', extensions => '{"a": 1.5}'`:                                  "extensions: 'a' is 1.5",
		`'/s', 't', 'x', extensions => '{"a": 2147483648}'`:                           "extensions: 'a' is 2147483648",
		`'/s', 't', repeat('x', 1048577)`:                                             "data: the event is up to",
		`'/s', 't', decode(repeat('00', 1048577), 'hex')`:                             "data: the event is up to",
		`'/s', 't', 'x', extensions => jsonb_build_object('a', repeat('x', 1048577))`: "data: the event is up to",
	} {
		var refused *pgconn.PgError
		_, err := s.pool.Exec(t.Context(), `SELECT waybill.emit(`+call+`)`)
		if !errors.As(err, &refused) || refused.Code != "22023" || !strings.HasPrefix(refused.Message, "waybill.emit: "+want) {
			t.Errorf("%s: %v, want %s", call, err, want)
		}
	}
}

// What SQL accepts an ingest accepts, of any characters.
func TestSQLIsNoLaxerThanIngest(t *testing.T) {
	s := mustStore(t)
	refs := []string{
		"/a", "a:b", "urn:x:y", "https://example.com/a?b=c#d", "//host", "//host:80/x", "//h:x", "http://[::1]/x", "http://[::1", "http://[g]/x", "http://[1.2.3.4]/x",
		"1:2", ":x", "x:", "a/b:c", "%41", "%4", "%zz", "http://a%41b/", "http://a%20b/", "http://u@h/", "http://u:p@h/", "http://a b/", "/a b", "/ü", "http://ü.de/", "?q", "#f", "/a#b#c",
		"/\t", "/\n", "/\x7f", "http://", "http:///x", "///x", "////x", "a//b", "@", "a@b", "[x]", "/[x]", "x?[y]", "*", "/a\n", "http://h:/x", "http://::1/", "mailto:a@b", "a+b-c.d:e", "é:x",
	}
	medias := []string{
		"application/json", "text/plain", "text/plain;charset=utf-8", "text/plain; charset=\"utf-8\"", "text", "/", "a/", "/b", "a/b;", "a/b;c", "a/b;c=", "a/b;c=d;c=d", "a/b;c=d;C=e",
		"a/b; c=\"x y\"", "a/b; c=\"x\\\"y\"", "a/b;c*=d", "a/b;c*0=d", "a b/c", "a/b c", "ä/b", "a/b; =x", "a/b;;c=d", "application/cloudevents+json", "a/b;c=d ;e=f", "A/B", "a/b\n",
	}
	random := rand.New(rand.NewPCG(1, 2))
	draw := func(alphabet []rune, n int) string {
		var b strings.Builder
		for range random.IntN(n) {
			b.WriteRune(alphabet[random.IntN(len(alphabet))])
		}
		return b.String()
	}
	for range 5000 {
		refs = append(refs, draw([]rune("aZ09/:?#[]@!$&'()*+,;=%-._~ 4F\"<>\\^`{|}ü€\t\x7f"), 12), "http://"+draw([]rune("ab.:/@%20[]?#1f"), 10))
		medias = append(medias, draw([]rune("ab/;= \"*'%\\c,[]()"), 14), "a/b"+draw([]rune("; a=b\"c"), 12))
	}
	compare(t, s, "waybill.is_uri_reference", refs, isURIReference)
	compare(t, s, "waybill.is_media_type", medias, isMediaType)
}

// compare wants a function of SQL to accept something, and nothing that accepts does not.
func compare(t *testing.T, s *Store, function string, texts []string, accepts func(string) bool) {
	t.Helper()
	rows, err := s.pool.Query(t.Context(), fmt.Sprintf(`SELECT %s(x) FROM unnest($1::text[]) WITH ORDINALITY AS u(x, n) ORDER BY n`, function), texts)
	if err != nil {
		t.Fatal(err)
	}
	verdicts, err := pgx.CollectRows(rows, pgx.RowTo[bool])
	if err != nil {
		t.Fatal(err)
	}
	both := 0
	for i, ok := range verdicts {
		switch {
		case ok && !accepts(texts[i]):
			t.Errorf("%s accepts %q, and an ingest does not", function, texts[i])
		case ok:
			both++
		}
	}
	if both < 100 {
		t.Errorf("%s accepts %d of %d: too few to tell", function, both, len(texts))
	}
}

// The largest event that SQL accepts is one that a taker takes.
func TestTheLargestEventInSQL(t *testing.T) {
	r := mustRig(t)
	s := mustService(t, r.url)
	extensions := `{`
	for i := range 50 {
		extensions += fmt.Sprintf(`"a%d": "%s", `, i, strings.Repeat("x", 100))
	}
	extensions += `"z": -2147483648, "y": true}`
	lo, hi := 0, 1<<20
	for lo < hi { // the most bytes of data that are accepted
		n := (lo + hi + 1) / 2
		err := pgx.BeginFunc(t.Context(), s.pool, func(tx pgx.Tx) error {
			_, err := tx.Exec(t.Context(), `SELECT waybill.emit('/s', 't', decode(repeat('00', $1), 'hex'), extensions => $2)`, n, extensions)
			return errors.Join(err, errRollBack)
		})
		var refused *pgconn.PgError
		if errors.As(err, &refused) {
			hi = n - 1
		} else {
			lo = n
		}
	}
	if lo < 1<<20-10_000 {
		t.Errorf("no more than %d bytes of data are accepted", lo)
	}
	if _, err := s.pool.Exec(t.Context(), `SELECT waybill.emit('/s', 't', decode(repeat('00', $1), 'hex'), id => 'large', extensions => $2)`, lo, extensions); err != nil {
		t.Fatal(err)
	}
	awaitTaken(t, r.store)
	assertStored(t, r.store, []string{"large"})
}

// What is emitted does not depend on how the caller's session reads literals and names.
func TestEmitUnderOtherSettings(t *testing.T) {
	r := mustRig(t)
	call := `SELECT waybill.emit('https://example.com/a?b=c#d', 't', '{"a": 1}'::jsonb, id => '%s', "time" => '2026-01-02 03:04:05+00',
		datacontenttype => 'application/json; charset="utf-8"', dataschema => 'https://example.com/x', extensions => '{"a": 1, "b": "c"}')`
	var want []string
	for _, setting := range []string{
		"standard_conforming_strings = off", "search_path = pg_temp", "datestyle = 'German'", "plpgsql.variable_conflict = use_column",
		"plpgsql.extra_errors = 'all'", "default_transaction_isolation = 'serializable'", "session_replication_role = replica", "transform_null_equals = on", "bytea_output = escape", "timezone = 'Pacific/Kiritimati'",
	} {
		conn, err := pgx.Connect(t.Context(), r.url) // a session that has not called anything yet
		if err != nil {
			t.Fatal(err)
		}
		for _, sql := range []string{"SET " + setting, fmt.Sprintf(call, strings.ReplaceAll(setting, "'", ""))} {
			if _, err := conn.Exec(t.Context(), sql, pgx.QueryExecModeExec); err != nil {
				t.Errorf("with %s: %v", setting, err)
			}
		}
		want = append(want, strings.ReplaceAll(setting, "'", ""))
		if err := conn.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	awaitTaken(t, r.store)
	assertStored(t, r.store, want)
}
