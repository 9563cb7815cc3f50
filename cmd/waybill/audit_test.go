package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/internal/reconcile"
	"github.com/waybillhq/waybill/pipeline"
)

// audit runs waybill audit on the plant.
func (p *plant) audit(t *testing.T, args ...string) (reconcile.Report, error) {
	t.Helper()
	r := p.auditText(t, append(args, "-o", "json")...)
	var report reconcile.Report
	if err := json.Unmarshal([]byte(r.out), &report); err != nil {
		t.Fatalf("%v: %+v", err, r)
	}
	return report, r.failure
}

func (p *plant) auditText(t *testing.T, args ...string) result {
	t.Helper()
	return command(t, nil, append(append([]string{"audit", "--database-url", p.url, "--lanes=4"}, p.s3Flags()...), args...)...)
}

// of returns what a report says of a sink, with what was archived instead of its pointer.
func of(r reconcile.Report, sink string) (s reconcile.Sink, archived int64) {
	for _, s := range r.Sinks {
		if s.Sink != sink {
			continue
		}
		if s.Archived != nil {
			archived = *s.Archived
		}
		s.Archived = nil
		return s, archived
	}
	return s, -1
}

func mustAccount(t *testing.T, r reconcile.Report, want reconcile.Sink, archived int64) {
	t.Helper()
	if got, n := of(r, want.Sink); got != want || n != archived {
		t.Errorf("%+v and %d archived, want %+v and %d; %+v", got, n, want, archived, r)
	}
}

// The account adds up at every stage of events: settled, waiting, dead, requeued, and late.
func TestAuditAddsUp(t *testing.T) {
	p := mustPlant(t)
	sent := int64(p.mustArchiveSome(t))
	report, err := p.audit(t)
	if err != nil || report.Accepted != sent || report.Keys != 40 || len(report.Notes) != 0 {
		t.Errorf("%+v, %v", report, err)
	}
	mustAccount(t, report, reconcile.Sink{Sink: "archive", Accepted: sent, Settled: sent}, sent)
	mustAccount(t, report, reconcile.Sink{Sink: "ingress", Accepted: sent, Settled: sent}, 0)

	// Forty more, that nobody delivers.
	in := p.startIngest(t, testSpec.Lanes, time.Hour)
	mustAccept(t, in, "waiting", 40)
	p.stop(t, "ingest")
	report, err = p.audit(t)
	if err != nil {
		t.Error(err)
	}
	mustAccount(t, report, reconcile.Sink{Sink: "archive", Accepted: sent + 40, Waiting: 40, Settled: sent}, sent)
	// They become dead letters; some go back into the queue, and one came late.
	mustExec(t, p.url, `UPDATE waybill.batches SET expires_at = now() - interval '1 second'`)
	if moved, err := p.store(t, testSpec.Lanes).Expire(t.Context()); err != nil || moved[pipeline.SinkCode{Sink: "archive", Code: pipeline.CodeExpired}] != 40 {
		t.Fatal(moved, err)
	}
	if r := command(t, nil, "deadletters", "requeue", "--sink=archive", "--limit=15", "--database-url", p.url, "--lanes=4"); r.failure != nil {
		t.Fatal(r.failure)
	}
	mustExec(t, p.url, `UPDATE waybill.dead_letters SET delivered_late_at = now() WHERE sink = 'ingress' AND position = (SELECT min(position) FROM waybill.dead_letters)`)
	report, err = p.audit(t)
	if err != nil {
		t.Error(err)
	}
	mustAccount(t, report, reconcile.Sink{Sink: "archive", Accepted: sent + 40, Waiting: 15, Dead: 25, Settled: sent}, sent)
	mustAccount(t, report, reconcile.Sink{Sink: "ingress", Accepted: sent + 40, Dead: 39, Settled: sent + 1}, 0)
	if text := p.auditText(t); text.failure != nil || !strings.Contains(text.out, "nothing is missing") || !strings.Contains(text.out, "280 events accepted ever, of 40 keys") {
		t.Errorf("%+v", text)
	}
	// Without the archive nothing is looked up there, and that is said.
	r := command(t, nil, "audit", "--database-url", p.url, "--lanes=4")
	if r.failure != nil || !strings.Contains(r.out, "note: the archive was not read") {
		t.Errorf("%+v", r)
	}
}

// What is lost is named: an object of the archive, rows of Postgres that wait, dead letters that were
// purged, and seqnums that Postgres no longer knows it gave out.
func TestAuditMissesWhatIsLost(t *testing.T) {
	p := mustPlant(t)
	sent := int64(p.mustArchiveSome(t))
	objects := p.archivedObjects(t)[2]
	lost := objects[2].Offset - objects[1].Offset
	p.mustPut(t, objects[1].Key, nil)
	report, err := p.audit(t)
	mustFail(t, result{failure: err}, "does not add up")
	mustAccount(t, report, reconcile.Sink{Sink: "archive", Accepted: sent, Settled: sent, Missing: lost}, sent-lost)
	mustAccount(t, report, reconcile.Sink{Sink: "ingress", Accepted: sent, Settled: sent}, 0)
	var named int64
	for _, m := range report.Missing {
		named += m.To - m.From + 1
		if m.Sink != "archive" || m.Type != "t" || !strings.HasPrefix(m.Source, "/source/") {
			t.Errorf("%+v", m)
		}
	}
	if named != lost {
		t.Errorf("%d are named of %d", named, lost)
	}
	if text := p.auditText(t); !strings.Contains(text.out, "missing in archive: seqnum ") || strings.Contains(text.out, "nothing is missing") {
		t.Errorf("%+v", text)
	}

	// One row that waits is gone.
	in := p.startIngest(t, testSpec.Lanes, time.Hour)
	mustAccept(t, in, "waiting", 10)
	p.stop(t, "ingest")
	mustExec(t, p.url, `DELETE FROM waybill.events WHERE position = (SELECT min(position) FROM waybill.events)`)
	report, err = p.audit(t)
	mustFail(t, result{failure: err}, "does not add up")
	mustAccount(t, report, reconcile.Sink{Sink: "ingress", Accepted: sent + 10, Waiting: 9, Settled: sent, Gone: 1}, 0)

	// Postgres is set back to before the last event of a key that the archive has.
	var last struct{ Source, Type string }
	if err := json.Unmarshal([]byte(p.archiveCommand(t, "cat", "--lane=0", "--limit=1").out), &last); err != nil {
		t.Fatal(err)
	}
	mustExec(t, p.url, fmt.Sprintf(`UPDATE waybill.heads h SET seqnums[k.id %% 32 + 1] = 1
		FROM waybill.keys k WHERE h.page = k.id / 32 AND k.source = '%s' AND k.type = '%s'`, last.Source, last.Type))
	if report, _ = p.audit(t); report.NeverGivenOut < 1 {
		t.Errorf("%+v", report)
	}
}

// With --since only what was accepted then is looked at, and what is missing of it is found.
func TestAuditSince(t *testing.T) {
	p := mustPlant(t)
	sent := int64(p.mustArchiveSome(t))
	between, err := p.store(t, testSpec.Lanes).Now(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	in := p.startIngest(t, testSpec.Lanes, time.Hour)
	p.startJanitor(t, testSpec.Lanes)
	p.startForwarder(t, testSpec.Lanes)
	var ends []int64 // of lane 2, after each round
	for i := range 3 {
		mustAccept(t, in, fmt.Sprintf("later%d", i), 40)
		p.mustDrain(t, p.store(t, testSpec.Lanes))
		ends = append(ends, int64(len(p.archived(t)[2])))
	}
	p.stop(t, "ingest", "forwarder", "janitor")
	objects := p.archivedObjects(t)
	p.mustPut(t, objects[1][0].Key, nil) // the oldest, as a lifecycle rule does
	since := "--since=" + between.Format(time.RFC3339Nano)
	report, err := p.audit(t, since)
	if err != nil || report.Accepted != 120 || report.Unseen != 0 {
		t.Errorf("%+v, %v", report, err)
	}
	mustAccount(t, report, reconcile.Sink{Sink: "archive", Accepted: 120, Settled: 120}, 120)
	all, err := p.audit(t)
	if n, _ := of(all, "archive"); err != nil || n.Accepted >= sent+120 || !strings.Contains(strings.Join(all.Notes, " "), "oldest objects were deleted") {
		t.Errorf("%+v, %v", all, err)
	}
	nothing, err := p.audit(t, "--since=1ns")
	if err != nil || nothing.Accepted != 0 || nothing.Unseen != 40 || !strings.Contains(strings.Join(nothing.Notes, " "), "of 40 keys nothing was found") {
		t.Errorf("%+v, %v", nothing, err)
	}
	for _, o := range objects[2] {
		if o.Offset >= ends[0] && o.Offset < ends[1] {
			p.mustPut(t, o.Key, nil)
		}
	}
	report, err = p.audit(t, since)
	mustFail(t, result{failure: err}, "does not add up")
	if n, _ := of(report, "archive"); n.Missing != ends[1]-ends[0] {
		t.Errorf("%d were lost: %+v", ends[1]-ends[0], report)
	}
}

// mustPurge empties the queue, as if all of it had been shed.
func (p *plant) mustPurge(t *testing.T) {
	t.Helper()
	js, err := jetstream.New(mustConnect(t, p))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), pipeline.EventsStream)
	if err == nil {
		err = stream.Purge(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// What is archived long after it was accepted says nothing of the events around it: neither with
// --since, nor where these were deleted since by a lifecycle rule.
func TestAuditOfWhatWasArchivedLate(t *testing.T) {
	p := mustPlant(t)
	store := p.store(t, testSpec.Lanes)
	in := p.startIngest(t, testSpec.Lanes, time.Hour)
	mustAccept(t, in, "late", 40)
	p.stop(t, "ingest")
	p.mustPurge(t)
	mustExec(t, p.url, `UPDATE waybill.batches SET expires_at = now() - interval '1 second'`)
	if moved, err := store.Expire(t.Context()); err != nil || moved[pipeline.SinkCode{Sink: "archive", Code: pipeline.CodeExpired}] != 40 {
		t.Fatal(moved, err)
	}
	round := func(prefix string) time.Time {
		in := p.startIngest(t, testSpec.Lanes, time.Hour)
		p.startJanitor(t, testSpec.Lanes)
		p.startForwarder(t, testSpec.Lanes)
		if prefix != "" {
			mustAccept(t, in, prefix, 40)
		} else if r := command(t, nil, "deadletters", "requeue", "--sink=archive", "--all", "--database-url", p.url, "--lanes=4"); r.failure != nil {
			t.Fatal(r.failure)
		}
		p.mustDrain(t, store)
		p.stop(t, "ingest", "forwarder", "janitor")
		now, err := store.Now(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return now
	}
	between := round("between")
	round("later")
	early := p.archivedObjects(t)
	round("") // the late ones, behind the others
	round("last")
	report, err := p.audit(t, "--since="+between.Format(time.RFC3339Nano))
	if err != nil || report.Accepted != 80 {
		t.Errorf("since: %+v, %v", report, err)
	}
	mustAccount(t, report, reconcile.Sink{Sink: "archive", Accepted: 80, Settled: 80}, 80)
	for _, objects := range early {
		for _, o := range objects {
			p.mustPut(t, o.Key, nil)
		}
	}
	report, err = p.audit(t)
	if err != nil || !strings.Contains(strings.Join(report.Notes, " "), "oldest objects were deleted") {
		t.Errorf("after the rule: %+v, %v", report, err)
	}
	mustAccount(t, report, reconcile.Sink{Sink: "archive", Accepted: 40, Settled: 40}, 40)
}

// A sink that was added later need not have what was accepted before, whatever else is known of that.
func TestAuditOfASinkThatWasAddedLater(t *testing.T) {
	p := mustPlant(t)
	store := p.store(t, testSpec.Lanes)
	mustExec(t, p.url, `DELETE FROM waybill.sinks WHERE name = 'archive'`)
	in := p.startIngest(t, testSpec.Lanes, time.Hour)
	mustAccept(t, in, "before", 80) // wait for ingress, which is not served
	p.stop(t, "ingest")
	p.mustPurge(t)
	mustExec(t, p.url, `UPDATE waybill.batches SET accepted_at = now() - interval '1 hour'`)
	mustExec(t, p.url, `UPDATE waybill.pipeline SET created_at = now() - interval '2 hours'`)
	mustExec(t, p.url, `INSERT INTO waybill.sinks (name, created_at) VALUES ('archive', now() - interval '10 minutes')`)
	if r := p.lanes(t, "pause", "--sink=ingress"); r.failure != nil {
		t.Fatal(r.failure)
	}
	in = p.startIngest(t, testSpec.Lanes, time.Hour)
	p.startJanitor(t, testSpec.Lanes)
	p.startForwarder(t, testSpec.Lanes)
	mustAccept(t, in, "after", 40)
	eventually(t, programLimit, "the archive has them", func() bool {
		survey, err := store.Survey(t.Context())
		return err == nil && survey.BySink()["archive"].Events == 0 && len(p.archived(t)) == testSpec.Lanes
	})
	p.stop(t, "ingest", "forwarder", "janitor")
	report, err := p.audit(t)
	if err != nil || !strings.Contains(strings.Join(report.Notes, " "), "archive was added at") {
		t.Errorf("%+v, %v", report, err)
	}
	mustAccount(t, report, reconcile.Sink{Sink: "archive", Accepted: 40, Settled: 40}, 40)
	// What is lost of the rest is found, where anything else is known of it.
	objects := p.archivedObjects(t)[2]
	p.mustPut(t, objects[len(objects)-1].Key, nil)
	report, err = p.audit(t)
	mustFail(t, result{failure: err}, "does not add up")
	if n, _ := of(report, "archive"); n.Missing < 1 {
		t.Errorf("%+v", report)
	}
}
