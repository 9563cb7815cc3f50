package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/waybillhq/waybill/pipeline"
)

func sampleStatus() *status {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	letters, more := countsOf(map[[2]string]int64{{"ingress", "EXPIRED"}: 3, {"ingress", "BAD"}: 1, {"archive", "MALFORMED_EVENT"}: 2})
	s := &status{
		At: at, Lanes: 8, Grace: "10s", postgresDone: true, natsDone: true,
		Sinks: sinksOf([]string{"archive", "ingress"}, pipeline.Survey{Now: at, Backlogs: []pipeline.Backlog{
			{Sink: "ingress", Lane: 1, Batches: 2, Events: 20, Bytes: 2000, OldestAccepted: at.Add(-90 * time.Second), Overdue: 1, NearTTL: 20, OldestExpires: at.Add(9 * time.Second)},
			{Sink: "ingress", Lane: 2, Batches: 1, Events: 5, Bytes: 100, OldestAccepted: at.Add(-time.Second)},
		}}),
		DeadLetters: letters, MoreLetters: more,
		Processes: []pipeline.Heartbeat{
			{Kind: "ingest", ID: "i1", Host: "h", PID: 7, Version: "v1", Started: at.Add(-time.Hour), Problem: "queue: it is\nnot there"},
			{Kind: "forwarder", ID: "f1", Host: "h", PID: 8, Version: "v1", Started: at.Add(-time.Minute)},
		},
		Owners: []laneOwner{
			{pipeline.SinkLane{Sink: "ingress", Lane: 0}, "f1", at},
			{pipeline.SinkLane{Sink: "ingress", Lane: 1}, "f1", at},
			{pipeline.SinkLane{Sink: "ingress", Lane: 2}, "f2", at},
			{pipeline.SinkLane{Sink: "ingress", Lane: 4}, "f1", at},
			{pipeline.SinkLane{Sink: "ingress", Lane: 7}, "f2", at},
		},
		streams: []pipeline.Buffer{
			{Name: "stream EVENTS", Unit: "bytes", Used: 85, Limit: 100}, {Name: "stream RECEIPTS", Unit: "bytes", Used: 79, Limit: 100},
		},
	}
	s.findTrouble()
	return s
}

func TestStatusText(t *testing.T) {
	var out strings.Builder
	if err := sampleStatus().write(&out); err != nil {
		t.Fatal(err)
	}
	want := `TROUBLE: ingest i1: queue: it is not there
TROUBLE: janitor: none is alive: nothing is settled, retransmitted or expired; start one
TROUBLE: sink archive: nobody holds its lanes 0-7
TROUBLE: sink ingress: 20 events have less than a fifth of their time to live left; the first becomes a dead letter in 9s
TROUBLE: sink ingress: nobody holds its lanes 3,5-6
TROUBLE: stream EVENTS: 85 of 100 bytes are used (85 %)
pipeline: 8 lanes, grace 10s

sink      pending events   bytes   batches   overdue batches   oldest
archive   0                0       0         0                 -
ingress   25               2100    3         1                 1m30s

process     id   host   pid   up       version   problem
ingest      i1   h      7     1h0m0s   v1        queue: it is not there
forwarder   f1   h      8     1m0s     v1        -
janitor     none is alive

sink      lanes   owner
archive   0-7     nobody
ingress   0-1,4   f1
ingress   2,7     f2
ingress   3,5-6   nobody

dead letters of   code              count
archive           MALFORMED_EVENT   2
ingress           BAD               1
ingress           EXPIRED           3
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

// A pipeline whose events come from emitters needs no ingest.
func TestStatusWithoutIngest(t *testing.T) {
	for kind, want := range map[string]bool{pipeline.KindEmitter: false, pipeline.KindJanitor: true} {
		s := sampleStatus()
		s.Processes[0].Kind, s.Trouble = kind, nil
		s.findTrouble()
		var out strings.Builder
		if err := s.write(&out); err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{"TROUBLE: ingest: none is alive", "ingest      none is alive"} {
			if strings.Contains(out.String(), text) != want {
				t.Errorf("with a live %s the status has %q: %v\n%s", kind, text, !want, out.String())
			}
		}
	}
}

func TestStatusTextOfTheOutbox(t *testing.T) {
	s := sampleStatus()
	s.Outbox = outboxStatus{Waiting: 12, Oldest: 90.04, Refused: 1, trouble: pipeline.OutboxSurvey{Waiting: 12, Oldest: 90 * time.Second}.Trouble()}
	s.Trouble = nil
	s.findTrouble()
	var out strings.Builder
	if err := s.write(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"TROUBLE: outbox: 12 rows wait in the outbox, the oldest for 1m30s: no ingest takes them",
		"\noutbox: 12 wait to be taken, the oldest for 1m30s; 1 are no events\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, out.String())
		}
	}
}

// A lane that an operator paused is not one that nobody has.
func TestStatusTextOfPauses(t *testing.T) {
	s := sampleStatus()
	since := s.At.Add(-time.Hour)
	s.Paused = map[string]pipeline.SinkPauses{
		"archive": {All: &pipeline.Pause{Since: since}},
		"ingress": {Lanes: map[int]pipeline.Pause{5: {Since: since, Reason: "a new\nendpoint"}, 6: {Since: since, Reason: "a new\nendpoint"}}},
	}
	s.Trouble = nil
	s.findTrouble()
	var out strings.Builder
	if err := s.write(&out); err != nil {
		t.Fatal(err)
	}
	if text := out.String(); !strings.Contains(text, "sink ingress: nobody holds its lanes 3\n") || strings.Contains(text, "sink archive: nobody") {
		t.Errorf("the trouble is not that of lane 3 alone:\n%s", text)
	}
	want := `sink      lanes   owner
archive   0-7     paused since 2026-01-02T02:04:05Z
ingress   0-1,4   f1
ingress   2,7     f2
ingress   5-6     paused since 2026-01-02T02:04:05Z: a new endpoint
ingress   3       nobody
`
	if !strings.Contains(out.String(), want) {
		t.Errorf("got\n%s\nwant in it\n%s", out.String(), want)
	}
}

func TestStatusJSON(t *testing.T) {
	data, err := json.Marshal(sampleStatus())
	if err != nil {
		t.Fatal(err)
	}
	var back struct {
		Sinks []struct {
			Sink   string  `json:"sink"`
			Events int64   `json:"pending_events"`
			Oldest float64 `json:"oldest_age_seconds"`
		} `json:"sinks"`
		Owners []struct {
			Sink string
			Lane int
		} `json:"lane_owners"`
	}
	if err := json.Unmarshal(data, &back); err != nil || len(back.Sinks) != 2 || back.Sinks[1].Events != 25 || back.Sinks[1].Oldest != 90 || len(back.Owners) != 5 || back.Owners[4].Sink != "ingress" || back.Owners[4].Lane != 7 {
		t.Errorf("%v: %s", err, data)
	}
}

// A server that is away is said, and the command fails, in bounded time.
func TestStatusWithoutServers(t *testing.T) {
	began := time.Now()
	r := command(t, nil, "status", "--database-url=postgres://user:geheim@127.0.0.1:1/x", "--nats-url=nats://127.0.0.1:1")
	mustFail(t, r, "not known in full: Postgres and NATS could not be asked")
	if !strings.Contains(r.out, "PROBLEM: Postgres: ") || !strings.Contains(r.out, "PROBLEM: NATS: ") || strings.Contains(r.out, "no dead letters") {
		t.Errorf("%s", r.out)
	}
	for _, setting := range []string{"connect to Postgres at 127.0.0.1:1, database x, as user user: connection refused; start Postgres there, or correct host and port in --database-url (WAYBILL_DATABASE_URL)\n", "--nats-url (WAYBILL_NATS_URL) is nats://127.0.0.1:1"} {
		if !strings.Contains(r.out, setting) {
			t.Errorf("it does not say %q: %s", setting, r.out)
		}
	}
	if strings.Contains(r.out+r.failure.Error(), "geheim") {
		t.Error("the password is printed")
	}
	if took := time.Since(began); took > time.Minute {
		t.Errorf("it took %v", took)
	}
	r = command(t, nil, "status", "-o", "json", "--database-url=postgres://x@127.0.0.1:1/x", "--nats-url=nats://127.0.0.1:1")
	var s status
	if err := json.Unmarshal([]byte(r.out), &s); err != nil || len(s.Problems) != 2 || r.failure == nil {
		t.Errorf("%v: %s", err, r.out)
	}
}

func TestRanges(t *testing.T) {
	for want, numbers := range map[string][]int{"": nil, "3": {3}, "0-2": {0, 1, 2}, "0,2-3,9": {0, 2, 3, 9}} {
		if got := ranges(numbers); got != want {
			t.Errorf("%v: %q, want %q", numbers, got, want)
		}
	}
}
