package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/internal/pgtest"
	"github.com/waybillhq/waybill/pipeline"
)

// mustLetters returns a database with dead letters of n events for each of the two sinks, and
// a store on it.
func mustLetters(t *testing.T, n int) (url string, store *pipeline.Store) {
	t.Helper()
	url = pgtest.New(t)
	store, err := openStore(t.Context(), url, testSpec.Lanes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	events := make([]pipeline.Event, n)
	for i := range events {
		events[i], err = pipeline.NewEvent(&pb.CloudEvent{
			Id: fmt.Sprint(i + 1), Source: "/orders", Type: "order.placed", SpecVersion: "1.0",
			Data: &pb.CloudEvent_TextData{TextData: "secret of " + fmt.Sprint(i+1)},
		}, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := store.Append(t.Context(), events, time.Microsecond, 1<<20); err != nil {
		t.Fatal(err)
	}
	moved, err := store.Expire(t.Context())
	if err != nil || moved[pipeline.SinkCode{Sink: "archive", Code: pipeline.CodeExpired}] != n {
		t.Fatal(moved, err)
	}
	return url, store
}

func mustExec(t *testing.T, url, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

func mustCount(t *testing.T, url, sql string) (n int) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if err := conn.QueryRow(t.Context(), sql).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func letters(t *testing.T, url string, args ...string) result {
	t.Helper()
	r := command(t, nil, append([]string{"deadletters", args[0], "--database-url", url, "--lanes=4"}, args[1:]...)...)
	if r.failure != nil {
		t.Fatalf("%v: %v", args, r.failure)
	}
	return r
}

func TestDeadlettersLs(t *testing.T) {
	url, _ := mustLetters(t, 3)
	r := letters(t, url, "ls")
	if strings.Count(r.out, "\n") != 7 || !strings.Contains(r.out, "order.placed") || strings.Contains(r.out, "secret") || r.err != "" {
		t.Errorf("%+v", r)
	}
	r = letters(t, url, "ls", "--sink=archive", "--limit=2", "-o", "json")
	lines := strings.Split(strings.TrimSpace(r.out), "\n")
	if len(lines) != 2 || !strings.HasPrefix(r.err, "there may be more beyond --limit=2") || strings.Contains(r.out, "secret") {
		t.Fatalf("%+v", r)
	}
	var l letter
	if err := json.Unmarshal([]byte(lines[1]), &l); err != nil || l.Sink != "archive" || l.State != "dead" || l.ID != "2" || l.Seqnum != 2 || l.Code != "expired" {
		t.Errorf("%+v, %v", l, err)
	}
	since := r.err[strings.Index(r.err, "--since=") : len(r.err)-1]
	if r = letters(t, url, "ls", since); strings.Count(r.out, "\n") != 7 {
		t.Errorf("%s: %+v", since, r)
	}
	if r = letters(t, url, "ls", "--until=1h"); strings.Count(r.out, "\n") != 1 || r.err != "no dead letter matches\n" {
		t.Errorf("%+v", r)
	}
	if r = letters(t, url, "ls", "--source=/ord*", "--type=order.*", "--id=2", "--since=1h", "-o", "json", "--show-data"); strings.Count(r.out, "secret of 2") != 2 {
		t.Errorf("%+v", r)
	}
	mustFail(t, command(t, nil, "deadletters", "ls", "--database-url", url, "--lanes=4", "--since=1h", "--until=2h"), "--since: ")
}

func TestDeadlettersShow(t *testing.T) {
	url, _ := mustLetters(t, 2)
	letters(t, url, "requeue", "--sink=ingress", "--id=2")
	var l letter
	r := letters(t, url, "show", "--source=/orders", "--id=2", "--sink=ingress", "-o", "json", "--show-data")
	if err := json.Unmarshal([]byte(r.out), &l); err != nil || l.State != "requeued" || l.Requeues != 1 || l.RequeuedBatch == 0 {
		t.Fatalf("%+v, %v", l, err)
	}
	var event map[string]any
	if err := json.Unmarshal(l.Event, &event); err != nil || event["data"] != "secret of 2" || event["seqnum"] != "2" || event["id"] != "2" {
		t.Errorf("%v, %v", event, err)
	}
	r = letters(t, url, "show", fmt.Sprint(l.Position))
	for _, text := range []string{"requeued: on its way", "dead: the sink lacks it", "11 bytes; --show-data", `"type":"order.placed"`, "requeued at", "last into batch"} {
		if !strings.Contains(r.out, text) {
			t.Errorf("no %q in %s", text, r.out)
		}
	}
	if strings.Contains(r.out, "secret") {
		t.Error("data is shown without being asked for")
	}
	mustFail(t, command(t, nil, "deadletters", "show", "1", "--database-url", url, "--lanes=4"), "no such dead letter")
}

func TestDeadlettersRequeue(t *testing.T) {
	url, store := mustLetters(t, 1200)
	r := letters(t, url, "requeue", "--sink=archive", "--dry-run", "--all")
	if r.out != "1200 dead letters would be queued again\n" {
		t.Errorf("%+v", r)
	}
	r = letters(t, url, "requeue", "--sink=archive")
	if !strings.HasPrefix(r.out, "1000 dead letters queued again") || !strings.Contains(r.err, "--all") {
		t.Errorf("%+v", r)
	}
	r = letters(t, url, "requeue", "--all", "-o", "json")
	if r.out != `{"dry_run":false,"requeued":1400,"skipped":0,"more":false}`+"\n" || strings.Contains(r.err, "--all") {
		t.Errorf("%+v", r)
	}
	survey, err := store.Survey(t.Context())
	if err != nil || survey.BySink()["archive"].Events != 1200 || survey.BySink()["ingress"].Events != 1200 {
		t.Errorf("%+v, %v", survey.BySink(), err)
	}
	mustFail(t, command(t, nil, "deadletters", "requeue", "--database-url", url, "--lanes=4", "--sink=typo"), "--sink", "archive, ingress", "migrate")
	mustExec(t, url, `UPDATE waybill.dead_letters SET requeued_at = NULL WHERE sink = 'archive'; DELETE FROM waybill.sinks WHERE name = 'archive'`)
	if r = letters(t, url, "requeue", "--all"); !strings.HasPrefix(r.out, "0 dead letters") || !strings.Contains(r.err, "1200 dead letters left alone") {
		t.Errorf("%+v", r)
	}
}

func TestDeadlettersPurge(t *testing.T) {
	url, _ := mustLetters(t, 600)
	letters(t, url, "requeue", "--sink=archive", "--id=7")
	if r := letters(t, url, "purge", "--sink=archive", "--dry-run"); r.out != "599 dead letters would be deleted\n" {
		t.Errorf("%+v", r)
	}
	purge := []string{"deadletters", "purge", "--database-url", url, "--lanes=4", "--sink=archive"}
	mustFail(t, command(t, nil, purge...), "--yes", "599")
	mustFail(t, commandAt(t, strings.NewReader("y\n"), true, purge...), "nothing was deleted")
	mustFail(t, commandAt(t, strings.NewReader(""), true, purge...), "nothing was deleted")
	r := commandAt(t, strings.NewReader("yes\n"), true, append(purge, "--id=3")...)
	if r.failure != nil || r.out != "1 dead letter deleted\n" || !strings.Contains(r.err, "Type yes") {
		t.Errorf("%+v", r)
	}
	if r = letters(t, url, "purge", "--all", "--yes", "--state=late"); r.out != "0 dead letters deleted\n" {
		t.Errorf("%+v", r)
	}
	if r = letters(t, url, "purge", "--all", "--yes", "-o", "json"); r.out != `{"dry_run":false,"purged":1198,"more":false}`+"\n" {
		t.Errorf("%+v", r)
	}
	if r = letters(t, url, "ls"); strings.Count(r.out, "\n") != 2 || !strings.Contains(r.out, "requeued") {
		t.Errorf("%+v", r)
	}
}

// What is damaged can be looked at all the same, and holds no other letter up.
func TestDeadlettersThatAreDamaged(t *testing.T) {
	url, _ := mustLetters(t, 3)
	mustExec(t, url, `UPDATE waybill.dead_letters SET event = CASE seqnum WHEN 1 THEN '\xff00'::bytea ELSE '' END, code = 'DAMAGED' WHERE seqnum < 3`)
	r := letters(t, url, "ls", "--sink=archive", "-o", "json", "--show-data")
	lines := strings.Split(strings.TrimSpace(r.out), "\n")
	if len(lines) != 3 || !strings.Contains(lines[0], `"undecodable":"/wA="`) || strings.Contains(lines[1], `"event"`) || !strings.Contains(lines[2], "secret of 3") {
		t.Errorf("%+v", r)
	}
	for id, text := range map[string]string{"1": "cannot be decoded", "2": "nothing is left"} {
		if r = letters(t, url, "show", "--source=/orders", "--id="+id, "--sink=archive"); !strings.Contains(r.out, text) {
			t.Errorf("%+v", r)
		}
		var l letter
		r = letters(t, url, "show", "--source=/orders", "--id="+id, "--sink=archive", "-o", "json")
		if err := json.Unmarshal([]byte(r.out), &l); err != nil || l.Code != "DAMAGED" || l.Event != nil || l.Undecodable != nil {
			t.Errorf("%+v, %v", l, err)
		}
	}
}
