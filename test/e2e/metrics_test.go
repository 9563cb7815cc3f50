package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/waybillhq/waybill/internal/metricsdoc"
	"github.com/waybillhq/waybill/schemas/chipingress"
)

// secretData is the data of every event of the test; no log may have it.
const secretData = "nobody-is-to-read-this"

// post sends an event by HTTP and returns the status.
func (s *system) post(t *testing.T, id, typ string) int {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.HTTP[0]+"/v1/events", strings.NewReader(secretData))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"Content-Type": "text/plain", "Ce-Specversion": "1.0", "Ce-Id": id, "Ce-Source": "/measured", "Ce-Type": typ,
	} {
		request.Header.Set(name, value)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, response.Body)
	return response.StatusCode
}

// mustSendAllSorts lets all kinds of things happen: events that are taken, refused and invalid, by
// each front, one that comes twice, a sink that is down, batches of many.
func mustSendAllSorts(t *testing.T, s *system) {
	s.mustBehave(t, `{"refuse_type":"^refused$"}`)
	for _, c := range []struct {
		id, typ string
		status  int
	}{{"1", "taken", 200}, {"1", "taken", 200}, {"2", "refused", 200}, {"3", "", 400}} {
		if got := s.post(t, c.id, c.typ); got != c.status {
			t.Fatalf("event %s of type %q was answered %d, want %d", c.id, c.typ, got, c.status)
		}
	}
	conn, err := grpc.NewClient(s.GRPC[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := chipingress.NewChipIngressClient(conn)
	for n := range 4 {
		batch := &chipingress.CloudEventBatch{}
		for i := range 500 {
			batch.Events = append(batch.Events, &pb.CloudEvent{
				Id: fmt.Sprintf("batch-%d-%d", n, i), Source: "/measured", Type: "many", SpecVersion: "1.0",
				Data: &pb.CloudEvent_TextData{TextData: secretData},
			})
		}
		if _, err := client.PublishBatch(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
	}
	s.mustSettle(t, patience)
	s.mustBehave(t, `{"down":true}`)
	if got := s.post(t, "late", "taken"); got != http.StatusOK {
		t.Fatalf("answered %d", got)
	}
	eventually(t, patience, "the sink is seen to be down", func() bool {
		families, err := s.Metrics(t.Context(), "forwarder-1")
		return err == nil && value(families["waybill_sink_down"], "sink", "ingress") == 1
	})
	s.mustBehave(t, `{"down":false}`)
	s.mustSettle(t, patience)
}

// value is that of a gauge with a label.
func value(family *dto.MetricFamily, label, is string) float64 {
	for _, m := range family.GetMetric() {
		for _, l := range m.GetLabel() {
			if l.GetName() == label && l.GetValue() == is {
				return m.GetGauge().GetValue()
			}
		}
	}
	return -1
}

// What the processes export after all kinds of things stands in docs/metrics.md, attribute by attribute,
// and their logs have a line for each change of state, none for each event, and no event's data.
func TestMetricsAndLogs(t *testing.T) {
	s := mustStart(t, nil)
	mustSendAllSorts(t, s)
	documented, err := metricsdoc.Read(filepath.Join("..", "..", "docs", "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"ingest", "forwarder", "janitor"} {
		var families map[string]*dto.MetricFamily
		eventually(t, patience, kind+" has read all that it reads now and then", func() bool {
			if families, err = s.Metrics(t.Context(), kind+"-1"); err != nil {
				return false
			}
			return kind != "janitor" || families["waybill_table_rows"] != nil && families["waybill_stream_size_bytes"] != nil
		})
		mustBeDocumented(t, kind, families, documented)
		mustLogLittle(t, filepath.Join(s.dir, "logs", kind+"-1.log"))
	}
}

// optional are attributes that only some of the points of a metric have.
var optional = []string{"error_type", "http_route"}

func mustBeDocumented(t *testing.T, kind string, families map[string]*dto.MetricFamily, documented []metricsdoc.Metric) {
	t.Helper()
	known := map[string]metricsdoc.Metric{}
	for _, m := range documented {
		if m.Process == kind || m.Process == metricsdoc.EveryProcess {
			known[m.Prometheus] = m
		}
	}
	seen := 0
	for name, family := range families {
		if strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_") || name == "target_info" {
			continue
		}
		m, ok := known[name]
		if !ok {
			t.Errorf("%s exports %s, which is not documented", kind, name)
			continue
		}
		seen++
		var want, got []string
		for _, a := range m.Attributes {
			want = append(want, metricsdoc.Label(a))
		}
		for _, point := range family.GetMetric() {
			for _, l := range point.GetLabel() {
				if !strings.HasPrefix(l.GetName(), "otel_scope_") && !slices.Contains(got, l.GetName()) {
					got = append(got, l.GetName())
				}
			}
		}
		for _, label := range got {
			if !slices.Contains(want, label) {
				t.Errorf("%s: %s has the label %s, which is not documented", kind, name, label)
			}
		}
		for _, label := range want {
			if !slices.Contains(got, label) && !slices.Contains(optional, label) {
				t.Errorf("%s: %s is documented to have the label %s, and has %v", kind, name, label, got)
			}
		}
	}
	// The rest counts what did not happen here: failures and losses.
	if seen < len(known)/2 {
		t.Errorf("%s exports %d of the %d metrics that are documented", kind, seen, len(known))
	}
}

// mustLogLittle looks at the log of a process that has handled 2,000 events.
func mustLogLittle(t *testing.T, path string) {
	t.Helper()
	log, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(log, []byte(secretData)) {
		t.Errorf("%s has an event's data", filepath.Base(path))
	}
	if lines := bytes.Count(log, []byte("\n")); lines == 0 || lines > 250 {
		t.Errorf("%s has %d lines:\n%s", filepath.Base(path), lines, log)
	}
}
