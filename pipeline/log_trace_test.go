package pipeline

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// What is logged of a batch names the trace of a sampled event in it, and nothing where there is none.
func TestLogsNameTheTrace(t *testing.T) {
	tracing := sampling()
	m, err := newPublisherMetrics(testMeter)
	if err != nil {
		t.Fatal(err)
	}
	for name, sampled := range map[string]bool{"sampled": true, "not sampled": false} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			p := &Publisher{log: slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})), metrics: m, tracing: tracing}
			b, want := &Batch{ID: BatchID{Number: 1, Token: 2}, count: 1}, any(nil)
			if sampled {
				event := tracing.sample(mustEvent(t, "/s", "t", "id").Encoded)
				b.traced, want = []tracedMember{{event, 0, event.parent}}, event.trace.String()
			}
			msg := &nats.Msg{Header: nats.Header{}}
			p.deliver(t.Context(), outgoing{msg: msg, id: b.ID, deadline: time.Now().Add(-time.Second), hop: tracing.publishing(b, msg)})
			var line map[string]any
			if err := json.Unmarshal(log.Bytes(), &line); err != nil {
				t.Fatalf("%v: %s", err, &log)
			}
			if line["trace_id"] != want || line["batch"] != b.ID.String() {
				t.Errorf("the line is %s, want the trace %v", &log, want)
			}
			events, attr := []Event{{}, {}}, slog.Attr{}
			if sampled {
				events[1].traced = b.traced[0].tracedEvent
				attr = slog.Any("trace_id", want)
			}
			if got := traceOfAny(events); !got.Equal(attr) {
				t.Errorf("the trace of the events is %v, want %v", got, attr)
			}
		})
	}
}
