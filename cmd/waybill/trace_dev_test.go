package main

import (
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/waybillhq/waybill/internal/collector"
)

// mustStartDev starts `waybill dev` in a directory of its own.
func mustStartDev(t *testing.T, env []string, args ...string) (dir string, dev *program) {
	t.Helper()
	dir = t.TempDir()
	// From here a missing S3 server can be built as from the checkout.
	for _, name := range []string{"go.mod", "internal"} {
		if err := os.Symlink(mustAbs(t, "../../"+name), dir+"/"+name); err != nil {
			t.Fatal(err)
		}
	}
	dev = start(t, dir, append([]string{"WAYBILL_ARCHIVE_LINGER=100ms"}, env...), append([]string{"dev", "--ports=free"}, args...)...)
	dev.awaitText(t, `Ctrl-C`)
	return dir, dev
}

// awaitTrace waits until `waybill trace` shows all of an event, and returns its text. Of a sink that has no
// span yet it says nothing, so that the text alone may look whole.
func awaitTrace(t *testing.T, dir, id string, args ...string) string {
	t.Helper()
	for deadline := time.Now().Add(programLimit); ; time.Sleep(100 * time.Millisecond) {
		out, code := waybill(t, dir, nil, append([]string{"trace", id}, args...)...)
		if code == 0 && !strings.Contains(out, "incomplete") && strings.Contains(out, "settle archive") && strings.Contains(out, "settle ingress") {
			return out
		}
		if time.Now().After(deadline) {
			t.Fatalf("status %d: %s", code, out)
		}
	}
}

// shapeOf is the text of a trace without what differs from one run to another: lengths, bars and
// numbers of batches and lanes.
func shapeOf(text string) string {
	text = regexp.MustCompile(`trace [0-9a-f]{32}: (.*) in .*`).ReplaceAllString(text, "trace ID: $1")
	text = regexp.MustCompile(`lane \d+, batch \S+`).ReplaceAllString(text, "lane, batch")
	text = regexp.MustCompile(`-?\d+\.\d\d m?s|\d+\.\d %`).ReplaceAllString(text, "")
	text = regexp.MustCompile(`[█▏]`).ReplaceAllString(text, " ")
	text = regexp.MustCompile(`(?m) +$`).ReplaceAllString(text, "")
	return regexp.MustCompile(`(\S) {2,}`).ReplaceAllString(text, "$1 ")
}

// shapeInOrder is the shape of a trace with the archive behind the endpoint: either may be the first
// to get an event.
func shapeInOrder(text string) string {
	archiveFirst := regexp.MustCompile(`(?s)(    process archive.*?settle archive janitor-1\n)(    process ingress.*?settle ingress janitor-1\n)`)
	return archiveFirst.ReplaceAllString(shapeOf(text), "$2$1")
}

const devTrace = `event a-1, source /orders, type order.paid, correlation id order-7
trace ID: 9 spans

span process offset length share
accept events ingest-1 over http
  commit events ingest-1
  publish EVENTS ingest-1 lane, batch
    process ingress forwarder-1
      send ingress forwarder-1
      settle ingress janitor-1
    process archive forwarder-1
      send archive forwarder-1
      settle archive janitor-1

to archive: delivered after , settled after
  wait for a transaction
  commit the transaction in Postgres
  publish until JetStream has the batch
  queue until a forwarder has it
  gather until the request: company, a slot, earlier tries
  send the request to the sink
  receipt until the receipt is stored
  settle until that is settled in Postgres

to ingress: delivered after , settled after
  wait for a transaction
  commit the transaction in Postgres
  publish until JetStream has the batch
  queue until a forwarder has it
  gather until the request: company, a slot, earlier tries
  send the request to the sink
  receipt until the receipt is stored
  settle until that is settled in Postgres
`

// Nothing but `waybill dev` is needed to see where the time of an event went.
func TestDevKeepsTraces(t *testing.T) {
	dir, dev := mustStartDev(t, []string{"OTEL_TRACES_EXPORTER=", "OTEL_EXPORTER_OTLP_ENDPOINT="})
	api := dev.awaitText(t, `trace 1   # .* API is at (http://\S+)`)[1]
	mustWork(t, dir, "emit", "--id=a-1", "--source=/orders", "--type=order.paid", "--extension=correlationid=order-7")
	out := awaitTrace(t, dir, "order-7")
	if shape := shapeInOrder(out); shape != devTrace {
		t.Errorf("got\n%s\nwant\n%s\nof\n%s", shape, devTrace, out)
	}
	if got := awaitTrace(t, dir, "a-1", "-o", "json"); !strings.Contains(got, `"id":"a-1"`) || strings.Contains(got, `"missing"`) {
		t.Error(got)
	}

	// A producer that does not sample, and a refused event.
	endpoint := dev.awaitText(t, `curl '(http://\S+)/events`)[1]
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPut, endpoint+"/behaviour", strings.NewReader(`{"refuse_type":"^bad$"}`))
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	mustWork(t, dir, "emit", "--id=b-1", "--type=bad", "--extension=traceparent=00-"+traceOne+"-00f067aa0ba902b7-00")
	if out := awaitTrace(t, dir, "b-1"); !strings.Contains(out, "trace "+traceOne) || !strings.Contains(out, "dead letter (VALIDATION_FAILED)") {
		t.Error(out)
	}
	out, code := waybill(t, dir, nil, "trace", "never")
	if code != 1 || !strings.Contains(out, api) || !strings.Contains(out, "it knows waybill-forwarder, waybill-ingest, waybill-janitor") {
		t.Errorf("status %d: %s", code, out)
	}
}

// Whoever names a receiver gets the spans, by the rules that he names, and nothing is kept here.
func TestDevSendsTracesWhereItIsTold(t *testing.T) {
	spans := collector.NewRecent(1000)
	receiver, err := collector.Listen("127.0.0.1:0", spans.Add)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = receiver.Close() }() // what is still sent has nobody to get it
	dir, dev := mustStartDev(t, append(receiver.Env(), "OTEL_BSP_SCHEDULE_DELAY=100", "OTEL_TRACES_SAMPLER=always_on"))
	if !strings.Contains(dev.text(), "where the OTEL_* variables say") {
		t.Error(dev.text())
	}
	mustWork(t, dir, "emit", "--id=a-1")
	out, code := waybill(t, dir, nil, "trace", "a-1")
	if code != 80 || !strings.Contains(out, "--query-url") {
		t.Errorf("status %d: %s", code, out)
	}
	ofEvent := func(s *collector.Span) bool { return s.Attributes["cloudevents.event_id"] == "a-1" }
	for deadline := time.Now().Add(programLimit); len(spans.Find(1, ofEvent)) == 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no span comes")
		}
	}
}
