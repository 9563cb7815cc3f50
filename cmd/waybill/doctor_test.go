package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/internal/doctor"
	"github.com/waybillhq/waybill/internal/endpoint"
	"github.com/waybillhq/waybill/internal/pgtest"
	"github.com/waybillhq/waybill/pipeline"
)

// doctor runs waybill doctor on the plant. Later flags count.
func (p *plant) doctor(t *testing.T, args ...string) ([]doctor.Finding, result) {
	t.Helper()
	r := command(t, nil, append(append([]string{"doctor", "-o", "json", "--database-url", p.url, "--nats-url", p.nats.URL(), "--lanes=4"}, p.s3Flags()...), args...)...)
	var all []doctor.Finding
	for line := range strings.Lines(r.out) {
		var f doctor.Finding
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if (f.Remedy == "") != (f.Level == doctor.OK) || f.Found == "" {
			t.Errorf("%+v", f)
		}
		all = append(all, f)
	}
	return all, r
}

// names lists the findings of a level, as server and check.
func names(all []doctor.Finding, level doctor.Level) (out []string) {
	for _, f := range all {
		if f.Level == level {
			out = append(out, f.Server+" "+f.Check)
		}
	}
	return out
}

// mustFind wants a finding of that level, with each text in what was found or in the remedy.
func mustFind(t *testing.T, all []doctor.Finding, level doctor.Level, name string, texts ...string) {
	t.Helper()
	for _, f := range all {
		if f.Server+" "+f.Check != name || f.Level != level {
			continue
		}
		missing := 0
		for _, text := range texts {
			if !strings.Contains(f.Found+" "+f.Remedy, text) {
				missing++
			}
		}
		if missing == 0 {
			return
		}
	}
	t.Errorf("no %s %s with %q in\n%s", level, name, texts, mustText(all))
}

func mustText(all []doctor.Finding) string {
	var b strings.Builder
	for _, f := range all {
		fmt.Fprintf(&b, "%s %s %s: %s (%s)\n", f.Level, f.Server, f.Check, f.Found, f.Remedy)
	}
	return b.String()
}

func mustEndpoint(t *testing.T) *endpoint.Endpoint {
	t.Helper()
	config := endpoint.DefaultConfig()
	config.Addr, config.AdminAddr, config.Log = "127.0.0.1:0", "127.0.0.1:0", slog.New(slog.DiscardHandler)
	e, err := endpoint.New(config)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	ctx := t.Context()
	go func() { ended <- e.Run(ctx) }()
	t.Cleanup(func() {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	<-e.Ready()
	return e
}

// In a whole pipeline nothing is found but what the servers of tests really lack.
func TestDoctorFindsAllWell(t *testing.T) {
	p := mustPlant(t)
	p.startIngest(t, testSpec.Lanes, time.Hour)
	p.startJanitor(t, testSpec.Lanes)
	p.startForwarder(t, testSpec.Lanes)
	queue := p.queue(t)
	eventually(t, programLimit, "all say that they are alive", func() bool {
		for _, kind := range []string{pipeline.KindIngest, pipeline.KindForwarder, pipeline.KindJanitor} {
			if live, err := pipeline.LiveProcesses(t.Context(), queue, kind); err != nil || len(live) != 1 || live[0].Problem != "" {
				return false
			}
		}
		return true
	})
	all, r := p.doctor(t, "--ingress-endpoint", mustEndpoint(t).Addr())
	if fails := names(all, doctor.Fail); len(fails) != 1 || fails[0] != "postgres durability" {
		t.Errorf("%s", mustText(all)) // the clusters of tests do without fsync
	}
	mustFail(t, r, "1 fault found")
	for _, want := range []string{
		"postgres reachable", "postgres version", "postgres clock", "postgres autovacuum", "postgres connections", "postgres transactions",
		"postgres schema", "postgres pipeline", "postgres privileges", "postgres sessions", "postgres outbox",
		"nats reachable", "nats version", "nats max_payload", "nats storage", "nats streams", "nats clock", "nats EVENTS", "nats EVENTS settings",
		"nats RECEIPTS settings", "nats consumers", "s3 reachable", "s3 clock", "s3 conditional writes", "s3 lifecycle", "s3 versioning",
		"ingress reachable", "processes ingest", "processes forwarder", "processes janitor",
	} {
		mustFind(t, all, doctor.OK, want)
	}
	if os.Getenv("TEST_DATABASE_URL") == "" { // else it is not one of ours
		mustFind(t, all, doctor.OK, "postgres checksums")
	}
	text := command(t, nil, append([]string{"doctor", "--database-url", p.url, "--nats-url", p.nats.URL(), "--lanes=4"}, p.s3Flags()...)...)
	if !regexp.MustCompile(`(?m)^ok +nats +version +nats-server`).MatchString(text.out) || !strings.Contains(text.out, "remedy: set fsync") || !strings.Contains(text.out, "not asked: --ingress-endpoint") {
		t.Errorf("%+v", text)
	}
}

// Each thing that is wrong is found, by the server that it is wrong with, with what to do.
func TestDoctorFindsFaults(t *testing.T) {
	p := mustPlant(t)
	js, err := jetstream.New(mustConnect(t, p))
	if err != nil {
		t.Fatal(err)
	}
	if err := js.DeleteConsumer(t.Context(), pipeline.EventsStream, "archive-2"); err != nil {
		t.Fatal(err)
	}
	if _, err := pipeline.PauseLanes(t.Context(), p.queue(t), "ingress", []int{1}, ""); err != nil {
		t.Fatal(err)
	}
	all, r := p.doctor(t, "--max-event-bytes=100000000", "--s3-bucket=nosuch", "--ingress-endpoint=127.0.0.1:1")
	mustFail(t, r, "faults found")
	mustFind(t, all, doctor.Fail, "nats consumers", "archive has 3 of 4", "start a janitor")
	mustFind(t, all, doctor.Fail, "nats max_payload", "100065536", "WAYBILL_MAX_EVENT_BYTES")
	mustFind(t, all, doctor.Warn, "nats pauses", "ingress", "waybill lanes resume --sink ingress")
	mustFind(t, all, doctor.Warn, "processes janitor", "none is alive")
	mustFind(t, all, doctor.Fail, "s3 reachable", "nosuch", "WAYBILL_S3_BUCKET")
	mustFind(t, all, doctor.Fail, "ingress reachable", "WAYBILL_INGRESS_ENDPOINT")

	mustExec(t, p.url, `INSERT INTO waybill.outbox (source, type, event_id, event, emitted_at, refused_at, reason) VALUES
		('/s', 't', 'i', NULL, now() - interval '5 minutes', NULL, NULL), ('/s', 't', 'j', 'x', now(), now(), 'is no event')`)
	all, _ = p.doctor(t)
	mustFind(t, all, doctor.Warn, "postgres outbox", "1 rows are no events", "is no event", "waybill.outbox_retry(")
	mustFind(t, all, doctor.Warn, "postgres outbox", "1 rows wait, the oldest for 5m", "--outbox")

	all, _ = p.doctor(t, "--lanes=8", "--s3-secret-key=wrong")
	mustFind(t, all, doctor.Fail, "postgres pipeline", "4 lanes", "WAYBILL_LANES=4")
	mustFind(t, all, doctor.Fail, "nats lanes", "made for 4 lanes, and the setting is 8", "--lanes=4 (WAYBILL_LANES=4)")
	mustFind(t, all, doctor.OK, "nats streams", "fit 4 lanes")
	mustFind(t, all, doctor.Fail, "nats consumers", "archive has 3 of 4")
	mustFind(t, all, doctor.Fail, "s3 reachable", "WAYBILL_S3_SECRET_KEY")

	all, _ = p.doctor(t, "--database-url=postgres://me:geheim@127.0.0.1:1/x", "--nats-url=nats://me:geheim@127.0.0.1:1", "--s3-endpoint=http://127.0.0.1:1")
	mustFind(t, all, doctor.Fail, "postgres reachable", "connect to Postgres at 127.0.0.1:1, database x, as user me: connection refused", "WAYBILL_DATABASE_URL")
	mustFind(t, all, doctor.Fail, "nats reachable", "WAYBILL_NATS_URL")
	mustFind(t, all, doctor.Fail, "s3 reachable", "WAYBILL_S3_ENDPOINT")
	if strings.Contains(mustText(all), "geheim") {
		t.Errorf("it prints a password:\n%s", mustText(all))
	}
	all, _ = p.doctor(t, "--database-url="+pgtest.NewEmpty(t))
	mustFind(t, all, doctor.Fail, "postgres schema", "no Waybill tables", "waybill migrate")
	mustExec(t, p.url, `DELETE FROM waybill.goose_db_version WHERE version_id = (SELECT max(version_id) FROM waybill.goose_db_version)`)
	all, _ = p.doctor(t)
	mustFind(t, all, doctor.Fail, "postgres schema", "this build needs", "waybill migrate")
}

// A role that may read is told exactly what it lacks.
func TestDoctorNamesMissingPrivileges(t *testing.T) {
	p := mustPlant(t)
	role := fmt.Sprintf("reader_%d", time.Now().UnixNano())
	mustExec(t, p.url, fmt.Sprintf(`CREATE ROLE %[1]s LOGIN PASSWORD 'x'; GRANT USAGE ON SCHEMA waybill TO %[1]s; GRANT SELECT ON ALL TABLES IN SCHEMA waybill TO %[1]s`, role))
	t.Cleanup(func() { // a role is the server's, and stays when the database goes
		conn, err := pgx.Connect(context.Background(), p.url)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close(context.Background())
		if _, err := conn.Exec(context.Background(), fmt.Sprintf(`DROP OWNED BY %[1]s; DROP ROLE %[1]s`, role)); err != nil {
			t.Error(err)
		}
	})
	u, err := url.Parse(p.url)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, "x")
	all, _ := p.doctor(t, "--database-url="+u.String())
	mustFind(t, all, doctor.Fail, "postgres privileges", "INSERT, UPDATE, DELETE ON waybill.batches", "TRUNCATE ON waybill.dedupe_log_0", "USAGE, UPDATE ON waybill.batch_numbers", "GRANT ")
}

// A server whose clock is off, and a rule that empties lanes: what the S3 server of tests cannot do, a
// proxy before it says.
func TestDoctorOfABucket(t *testing.T) {
	p := mustPlant(t)
	target, err := url.Parse(p.s3.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	answer, status := "", http.StatusOK
	ignores := false // the condition of a PUT
	proxy.ModifyResponse = func(r *http.Response) error {
		r.Header.Set("Date", time.Now().Add(-time.Minute).UTC().Format(http.TimeFormat))
		if ignores && r.StatusCode == http.StatusPreconditionFailed {
			r.StatusCode, r.Status, r.Body, r.ContentLength = http.StatusOK, "200 OK", http.NoBody, 0
			r.Header.Set("Content-Length", "0")
		}
		return nil
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("lifecycle") {
			w.Header().Set("Content-Type", "application/xml")
			w.WriteHeader(status)
			_, _ = w.Write([]byte(answer))
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	rule := func(id, prefix string) string {
		return fmt.Sprintf(`<Rule><ID>%s</ID><Status>Enabled</Status><Filter><Prefix>%s</Prefix></Filter><Expiration><Days>30</Days></Expiration></Rule>`, id, prefix)
	}
	answer = `<LifecycleConfiguration>` + rule("logs", "logs/") + rule("old", p.archive.Prefix) + `</LifecycleConfiguration>`
	all, _ := p.doctor(t, "--s3-endpoint="+server.URL)
	mustFind(t, all, doctor.Fail, "s3 lifecycle", `"old"`, "after 30 days", "newest object of every lane must stay")
	mustFind(t, all, doctor.Warn, "s3 clock", "off this machine's", "time service")
	mustFind(t, all, doctor.OK, "s3 conditional writes")

	answer = `<LifecycleConfiguration>` + rule("logs", "logs/") + `</LifecycleConfiguration>`
	all, _ = p.doctor(t, "--s3-endpoint="+server.URL)
	mustFind(t, all, doctor.OK, "s3 lifecycle", "none of 1 rules")
	status, answer = http.StatusNotFound, `<Error><Code>NoSuchLifecycleConfiguration</Code></Error>`
	all, _ = p.doctor(t, "--s3-endpoint="+server.URL)
	mustFind(t, all, doctor.OK, "s3 lifecycle", "no rule")
	status, answer = http.StatusForbidden, `<Error><Code>AccessDenied</Code></Error>`
	all, _ = p.doctor(t, "--s3-endpoint="+server.URL)
	mustFind(t, all, doctor.Warn, "s3 lifecycle", "s3:GetLifecycleConfiguration")
	ignores = true
	status, answer = http.StatusTeapot, `<Error><Code>Teapot</Code></Error>`
	all, _ = p.doctor(t, "--s3-endpoint="+server.URL)
	mustFind(t, all, doctor.Warn, "s3 lifecycle", "Teapot")
	mustFind(t, all, doctor.Fail, "s3 conditional writes", "If-None-Match")
}

// What stands in place of a user in the URL of a NATS server is a token, and nobody sees it.
func TestDoctorShowsNoToken(t *testing.T) {
	p := mustPlant(t)
	url := strings.Replace(p.nats.URL(), "nats://", "nats://geheim@", 1)
	_, r := p.doctor(t, "--nats-url", url)
	if strings.Contains(r.out+r.err, "geheim") || !strings.Contains(r.out, strings.TrimPrefix(p.nats.URL(), "nats://")) {
		t.Errorf("%+v", r)
	}
	for _, malformed := range []string{"nats://me:geheim/x@127.0.0.1:1", "nats://me:4711/geheim@127.0.0.1:port", "nats://me:geheim%zz@127.0.0.1:1"} {
		_, r := p.doctor(t, "--nats-url", malformed)
		if text := fmt.Sprint(r.failure) + r.out + r.err; strings.Contains(text, "geheim") {
			t.Errorf("%s: %s", malformed, text)
		}
	}
}
