package devrun

import (
	"bytes"
	"context"
	"fmt"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Names of the processes' counters, as Prometheus knows them.
const (
	acceptedMetric    = "waybill_ingest_events_accepted_total"
	takenMetric       = "waybill_outbox_taken_total"
	deliveredMetric   = "waybill_forwarder_events_total"
	retransmitsMetric = "waybill_retransmit_events_total"
)

// Counters is what the processes have counted since the stack was started.
type Counters struct {
	// Accepted events came over HTTP or gRPC, or out of the outbox. What emitters in processes of
	// others append is not in it: no process of the stack sees them do it.
	Accepted    int64
	Delivered   map[string]int64 // by sink
	Retransmits int64            // events published again by the janitors
}

// counters adds up the counters of several processes. One that was started again is
// another process, and begins at 0.
type counters struct {
	last map[string]float64 // what each process said last, by process and counter
	sum  map[string]float64 // by counter
}

func newCounters() *counters {
	return &counters{last: map[string]float64{}, sum: map[string]float64{}}
}

// observe takes the word of a process on one of its counters.
func (c *counters) observe(process, counter string, value float64) {
	key := process + " " + counter
	c.sum[counter] += value - c.last[key]
	c.last[key] = value
}

// Admin is the URL of the admin address of one of Waybill's processes, such as ingest-1;
// empty: there is no such process.
func (s *Stack) Admin(name string) string {
	addr, ok := s.admins[name]
	if !ok {
		return ""
	}
	return "http://" + addr
}

// Metrics is what a process says at /metrics, by the names that Prometheus knows. name is
// one of Waybill's processes, such as ingest-1.
func (s *Stack) Metrics(ctx context.Context, name string) (map[string]*dto.MetricFamily, error) {
	addr := s.Admin(name)
	if addr == "" {
		return nil, fmt.Errorf("metrics of %s: there is no such process", name)
	}
	body, err := get(ctx, addr+"/metrics")
	if err != nil {
		return nil, fmt.Errorf("metrics of %s: %w", name, err)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("metrics of %s: %w", name, err)
	}
	return families, nil
}

// Counters asks the processes. One that does not answer is left out until it does.
func (s *Stack) Counters(ctx context.Context) Counters {
	for _, m := range s.members() {
		addr, ok := s.admins[m.Name()]
		if !ok {
			continue
		}
		process := fmt.Sprintf("%s %d", m.Name(), m.PID()) // read before its counters
		body, err := get(ctx, "http://"+addr+"/metrics")
		if err != nil {
			continue
		}
		values, err := readMetrics(body)
		if err != nil {
			continue
		}
		for counter, value := range values {
			s.counters.observe(process, counter, value)
		}
	}
	out := Counters{
		Accepted:    int64(s.counters.sum[acceptedMetric] + s.counters.sum[takenMetric]),
		Retransmits: int64(s.counters.sum[retransmitsMetric]),
		Delivered:   map[string]int64{},
	}
	for counter, value := range s.counters.sum {
		var sink string
		if n, _ := fmt.Sscanf(counter, deliveredMetric+" %s", &sink); n == 1 {
			out.Delivered[sink] = int64(value)
		}
	}
	return out
}

// readMetrics returns the sums of the counters above; deliveries have the sink behind a
// space.
func readMetrics(text []byte) (map[string]float64, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("read metrics: %w", err)
	}
	out := map[string]float64{}
	for _, name := range []string{acceptedMetric, takenMetric, retransmitsMetric} {
		for _, m := range families[name].GetMetric() {
			out[name] += m.GetCounter().GetValue()
		}
	}
	for _, m := range families[deliveredMetric].GetMetric() {
		labels := labelsOf(m)
		if labels["outcome"] == "delivered" {
			out[deliveredMetric+" "+labels["sink"]] += m.GetCounter().GetValue()
		}
	}
	return out, nil
}

func labelsOf(m *dto.Metric) map[string]string {
	labels := make(map[string]string, len(m.GetLabel()))
	for _, pair := range m.GetLabel() {
		labels[pair.GetName()] = pair.GetValue()
	}
	return labels
}
