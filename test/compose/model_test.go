package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/waybillhq/waybill/pipeline"
)

func TestModel(t *testing.T) {
	m := mustModel(t)
	built, from, err := m.built()
	if err != nil || built != "${WAYBILL_IMAGE:-waybill:dev}" || len(from) != 2 || from[0] == "" || from[1] == "" {
		t.Errorf("%q, %v, %v", built, from, err)
	}
	if got := slices.Sorted(maps.Keys(m.foreign(built))); !slices.Equal(got, []string{"jaeger", "nats", "postgres", "s3"}) {
		t.Errorf("foreign: %v", got)
	}
	if m.needed("jaeger") || !m.needed("s3") || !m.needed("migrate") || m.needed("emitter") {
		t.Error("who waits for whom is read wrongly")
	}
	if slices.Contains(m.names(), "grafana") || !slices.Contains(m.names(), "proxy") {
		t.Errorf("%v", m.names())
	}
	for _, text := range []string{"{", "services: {}"} {
		if _, err := readModel([]byte(text)); err == nil {
			t.Errorf("%q passes", text)
		}
	}
	if _, _, err := (model{}).built(); err == nil {
		t.Error("a file that builds nothing passes")
	}
}

const inspectText = `[
 {"Id":"b","State":{"Status":"running","ExitCode":0,"Health":{"Status":"healthy"}},"Config":{"Labels":{"com.docker.compose.service":"ingest"}},"HostConfig":{"RestartPolicy":{"Name":"unless-stopped"}}},
 {"Id":"a","State":{"Status":"running","ExitCode":0,"Health":{"Status":"starting"}},"Config":{"Labels":{"com.docker.compose.service":"ingest"}},"HostConfig":{"RestartPolicy":{"Name":"unless-stopped"}}},
 {"Id":"c","State":{"Status":"exited","ExitCode":0},"Config":{"Labels":{"com.docker.compose.service":"migrate"}},"HostConfig":{"RestartPolicy":{"Name":""}}},
 {"Id":"d","State":{"Status":"exited","ExitCode":137},"Config":{"Labels":{"com.docker.compose.service":"nats"}},"HostConfig":{"RestartPolicy":{"Name":"unless-stopped"}}},
 {"Id":"e","State":{"Status":"running","ExitCode":0},"Config":{"Labels":{"com.docker.compose.service":"emitter"}},"HostConfig":{"RestartPolicy":{"Name":"unless-stopped"}}},
 {"Id":"f","State":{"Status":"exited","ExitCode":1},"Config":{"Labels":{"com.docker.compose.service":"other"}},"HostConfig":{"RestartPolicy":{"Name":"no"}}}]`

func TestContainers(t *testing.T) {
	var all []inspected
	if err := json.Unmarshal([]byte(inspectText), &all); err != nil {
		t.Fatal(err)
	}
	have := containersOf(all)
	got := map[string]bool{}
	for _, c := range have {
		got[c.ID] = c.settled()
	}
	if want := map[string]bool{"a": false, "b": true, "c": true, "d": false, "e": true, "f": false}; !maps.Equal(got, want) {
		t.Errorf("settled: %v", got)
	}
	if !have[len(have)-1].failed() || have[0].failed() {
		t.Errorf("failed: %v", have)
	}
	for want, wanted := range map[string]map[string]int{
		"":                      {"migrate": 1, "emitter": 1},
		"ingest: 1 of 2":        {"ingest": 2},
		"nats: 0 of 1":          {"nats": 1},
		"exited, exit 137":      {"nats": 1},
		"running, starting":     {"ingest": 2},
		"proxy: 0 of 1":         {"proxy": 1, "migrate": 1},
		"emitter: 1 of 3":       {"emitter": 3},
		"other (f: exited, exi": {"other": 1},
	} {
		if got := missing(wanted, have); !strings.Contains(got, want) || (want == "") != (got == "") {
			t.Errorf("%v: %q, want %q", wanted, got, want)
		}
	}
}

// mustState is a status with so many processes and lanes of each forwarder, of two sinks.
func mustState(t *testing.T, ingests int, lanes ...int) state {
	t.Helper()
	s := state{Lanes: 16}
	if err := json.Unmarshal([]byte(`[{"sink":"archive"},{"sink":"ingress"}]`), &s.Sinks); err != nil {
		t.Fatal(err)
	}
	for range ingests {
		s.Processes = append(s.Processes, pipeline.Heartbeat{Kind: pipeline.KindIngest})
	}
	for i, n := range lanes {
		s.Processes = append(s.Processes, pipeline.Heartbeat{Kind: pipeline.KindForwarder})
		for range n {
			for _, sink := range s.Sinks {
				s.Owners = append(s.Owners, struct {
					Sink      string `json:"sink"`
					Forwarder string `json:"forwarder"`
				}{sink.Sink, fmt.Sprint("forwarder-", i)})
			}
		}
	}
	return s
}

func TestSpread(t *testing.T) {
	for want, s := range map[string]state{
		"":                              mustState(t, 2, 4, 4, 4, 4),
		"3 processes of the kind forwa": mustState(t, 2, 6, 5, 5),
		"1 processes of the kind inges": mustState(t, 1, 4, 4, 4, 4),
		"30 lanes of all sinks have an": mustState(t, 2, 4, 4, 4, 3),
		"has 5 lanes of":                mustState(t, 2, 5, 3, 4, 4),
	} {
		if got := s.unspread(4, 2); !strings.Contains(got, want) || (want == "") != (got == "") {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestUnsettled(t *testing.T) {
	s := mustState(t, 1, 16)
	s.Sinks[0].Events = fewPending
	if got := s.unsettled(); got != "" {
		t.Error(got)
	}
	s.Sinks[0].Events++
	if got := s.unsettled(); !strings.Contains(got, "11 events wait for archive") {
		t.Error(got)
	}
	dead := mustState(t, 1, 16)
	if err := json.Unmarshal([]byte(`[{"sink":"ingress","code":"expired","count":2}]`), &dead.DeadLetters); err != nil {
		t.Fatal(err)
	}
	if got := dead.unsettled(); !strings.Contains(got, "2 dead letters of ingress: expired") {
		t.Error(got)
	}
	if got := (state{}).unsettled(); got == "" {
		t.Error("a status without sinks passes")
	}
}

// What Jaeger answers is read as its pages do.
func TestTracedServices(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/traces" || r.URL.Query().Get("service") != "waybill-ingest" {
			http.Error(w, "what is this?", http.StatusNotFound)
			return
		}
		fmt.Fprint(w, `{"data":[
			{"processes":{"p1":{"serviceName":"waybill-ingest"}}},
			{"processes":{"p1":{"serviceName":"waybill-janitor"},"p2":{"serviceName":"waybill-ingest"},"p3":{"serviceName":"waybill-forwarder"},"p4":{"serviceName":"waybill-forwarder"}}},
			{"processes":{}}]}`)
	}))
	defer server.Close()
	got, err := tracedServices(t.Context(), server.URL)
	if err != nil || !slices.Equal(got, []string{"waybill-forwarder", "waybill-ingest", "waybill-janitor"}) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := tracedServices(t.Context(), server.URL+"/away"); err == nil {
		t.Error("an error passes for an answer")
	}
}

func TestBannerIsLoud(t *testing.T) {
	var out strings.Builder
	banner(&out, "THE CONTAINERS WERE NOT TESTED", (&impossibleError{"no Docker engine answers", "start one"}).Error())
	for _, want := range []string{"****", "NOT TESTED", "no Docker engine answers: start one"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in %s", want, out.String())
		}
	}
}
