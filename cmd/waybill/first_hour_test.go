package main

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// hourHeading is that of the walk in docs/operations.md.
const hourHeading = "A first hour"

// hourActs are the steps of the walk, in order, and what must be so besides what the page shows.
var hourActs = []struct {
	title string
	play  func(*hour, *testing.T)
}{
	{"1. Start", (*hour).start},
	{"2. Send an event and trace it", (*hour).trace},
	{"3. Look at metrics and dashboards", (*hour).look},
	{"4. A sink goes down, and comes back", (*hour).outage},
	{"5. Find an event that was refused, and send it again", (*hour).poison},
	{"6. Replay an hour", (*hour).replay},
	{"7. Scale the forwarders", (*hour).scale},
}

// What a newcomer reads in docs/operations.md works as it stands there: the commands of the page are run
// one after another, and show what the page says that they show.
func TestFirstHour(t *testing.T) {
	acts, err := readWalk(mustReadPage(t, "docs/operations.md"), hourHeading)
	if err != nil {
		t.Fatal(err)
	}
	anchor := "docs/operations.md#" + strings.ReplaceAll(strings.ToLower(hourHeading), " ", "-")
	if !strings.Contains(mustReadPage(t, "README.md"), "("+anchor+")") {
		t.Errorf("README.md does not lead to %s", anchor)
	}
	var written, tested []string
	for _, a := range acts {
		written = append(written, a.title)
	}
	for _, a := range hourActs {
		tested = append(tested, a.title)
	}
	if !slices.Equal(written, tested) {
		t.Fatalf("the page has the steps %q, and tested are %q", written, tested)
	}
	h := newHour(t)
	for i, a := range hourActs {
		h.act, h.left = acts[i], acts[i].scenes
		if !t.Run(a.title, func(t *testing.T) {
			a.play(h, t)
			if len(h.left) > 0 {
				t.Errorf("%q was not typed", h.left[0].commands)
			}
		}) {
			return // the others build on it
		}
	}
}

func (h *hour) start(t *testing.T) {
	h.first = h.foreground(t)
	h.next(t)
	h.mustSettle(t)
	if got := h.lanes(t); len(got) != 2 || got["archive forwarder-1"] != 16 || got["ingress forwarder-1"] != 16 {
		t.Errorf("lanes: %v", got)
	}
}

func (h *hour) trace(t *testing.T) {
	h.next(t)
	shown := h.next(t)
	_, trace, _ := strings.Cut(shown, "\nevent ")
	want := strings.Replace(devTrace, "a-1, source /orders, type order.paid, correlation id order-7", "order-1, source /shop, type order.placed, correlation id cart-7", 1)
	if got := shapeInOrder("event " + trace); got != want {
		t.Errorf("got\n%s\nwant\n%s\nof\n%s", got, want, shown)
	}
}

// look holds the dashboards against the metrics of the running processes.
func (h *hour) look(t *testing.T) {
	h.next(t)
	watch := h.foreground(t)
	line := regexp.MustCompile(`(?m)^\S+ · archive 0 pending · ingress 0 pending · 1 ingest, 1 forwarder, 1 janitor · 0 dead letters\n(?s:.*)^\S+ · archive`)
	watch.awaitText(t, line.String()) // it looks again
	interrupt(t, watch)
	h.mustHaveDashboards(t)
}

func (h *hour) outage(t *testing.T) {
	h.next(t)
	h.next(t)
	if _, code := h.admin(t, "endpoint", "/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("the endpoint's status is %d while it is down", code)
	}
	if got := h.records(t, "?type=order.paid"); len(got) > 0 {
		t.Errorf("the endpoint that is down has %v", got[0])
	}
	h.next(t)
	h.next(t)
	h.mustSettle(t)
	got := h.records(t, "?type=order.paid")
	if len(got) != 500 {
		t.Fatalf("the endpoint has %d events", len(got))
	}
	for i, r := range got {
		if r.Seqnum != int64(i+1) {
			t.Fatalf("record %d has seqnum %d", i, r.Seqnum)
		}
	}
	for _, m := range h.metrics(t, "janitor_1")["waybill_retransmit_events_total"].GetMetric() {
		if n := m.GetCounter().GetValue(); n > 0 {
			t.Errorf("%v events were retransmitted, which were queued all the time", n)
		}
	}
	mustWork(t, h.dir, "archive", "verify")
}

func (h *hour) poison(t *testing.T) {
	h.next(t)
	h.next(t)
	letters := decodeLines[letter](t, mustWork(t, h.dir, "deadletters", "ls", "-o", "json"))
	if len(letters) != 1 || letters[0].Sink != ingressSink || letters[0].Code != "SCHEMA_MISSING" || letters[0].State != "dead" || letters[0].ID != "return-1" {
		t.Errorf("dead letters: %+v", letters)
	}
	if got := h.records(t, "?type=order.returned"); len(got) > 0 {
		t.Errorf("the endpoint took %+v", got)
	}
	if s := h.status(t); len(s.DeadLetters) != 1 || s.DeadLetters[0] != (letterCount{Sink: ingressSink, Code: "SCHEMA_MISSING", Count: 1}) {
		t.Errorf("status counts %+v", s.DeadLetters)
	}
	h.next(t)
	h.next(t)
	h.mustSettle(t)
	if got := h.records(t, "?type=order.returned"); len(got) != 1 || got[0].ID != "return-1" || got[0].Seqnum != 1 {
		t.Errorf("the endpoint has %+v", got)
	}
	if n := strings.Count(mustWork(t, h.dir, "archive", "cat", "--type=order.returned"), "\n"); n != 1 {
		t.Errorf("the archive has it %d times", n)
	}
}

func (h *hour) replay(t *testing.T) {
	before := map[string]bool{}
	for _, r := range h.records(t, "") {
		before[r.ID] = true
	}
	var would, delivered int
	if _, err := fmt.Sscanf(h.next(t), "%d events would be delivered", &would); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(h.next(t), "replay lost-hour: %d events delivered", &delivered); err != nil {
		t.Fatal(err)
	}
	after := h.records(t, "")
	if would != len(before) || delivered != would || len(after) != would {
		t.Errorf("of %d events %d would be delivered, %d are said to be, %d were", len(before), would, delivered, len(after))
	}
	for _, r := range after {
		if r.ReplayID != "lost-hour" || !before[r.ID] {
			t.Fatalf("replayed: %+v", r)
		}
		delete(before, r.ID) // each once
	}
	h.mustSettle(t)
	if n := strings.Count(mustWork(t, h.dir, "archive", "cat"), "\n"); n != would {
		t.Errorf("the archive has %d events after the replay", n)
	}
}

func (h *hour) scale(t *testing.T) {
	halves := map[string]int{"archive forwarder-1": 8, "archive forwarder-2": 8, "ingress forwarder-1": 8, "ingress forwarder-2": 8}
	h.third = h.foreground(t)
	h.next(t)
	h.awaitLanes(t, halves)
	h.next(t)
	if by := h.deliverers(t, 8); !slices.Equal(by, []string{"forwarder-1", "forwarder-2"}) {
		t.Errorf("the events were delivered by %v", by)
	}
	interrupt(t, h.third)
	h.awaitLanes(t, map[string]int{"archive forwarder-1": 16, "ingress forwarder-1": 16})
	interrupt(t, h.first)
	h.first = h.foreground(t)
	h.next(t)
	h.awaitLanes(t, halves)
	h.mustSettle(t)
	if out := interrupt(t, h.first); !strings.HasSuffix(out, "stopped\n") {
		t.Error(out)
	}
}

func (h *hour) awaitLanes(t *testing.T, want map[string]int) {
	t.Helper()
	for deadline := time.Now().Add(programLimit); ; time.Sleep(100 * time.Millisecond) {
		got := h.lanes(t)
		if fmt.Sprint(got) == fmt.Sprint(want) { // maps are printed in order
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("lanes: %v, want %v", got, want)
		}
	}
}

var byForwarder = regexp.MustCompile(`process ingress +(\S+)`)

// deliverers are the forwarders that have delivered the first event of each till, by their traces, which are whole.
func (h *hour) deliverers(t *testing.T, tills int) (names []string) {
	t.Helper()
	for n := range tills {
		got := h.records(t, fmt.Sprintf("?source=/till/%d", n+1))
		if len(got) != 25 {
			t.Fatalf("the endpoint has %d events of till %d", len(got), n+1)
		}
		trace := awaitTrace(t, h.dir, got[0].ID)
		match := byForwarder.FindStringSubmatch(trace)
		if match == nil {
			t.Fatal(trace)
		}
		names = append(names, match[1])
	}
	slices.Sort(names)
	return slices.Compact(names)
}
