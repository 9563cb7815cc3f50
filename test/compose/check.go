package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/internal/endpoint"
	"github.com/waybillhq/waybill/internal/roundtrip"
	"github.com/waybillhq/waybill/pipeline"
)

// fewPending is what may wait while the emitter goes on.
const fewPending = 10

// settle waits until what was sent is settled. The emitter's events come and go all the while.
func (t *trial) settle(ctx context.Context) error {
	problem := "nobody was asked"
	for deadline := time.Now().Add(settleWithin); time.Now().Before(deadline); {
		s, err := t.status(ctx)
		if err != nil {
			problem = err.Error()
		} else if problem = s.unsettled(); problem == "" {
			return nil
		}
		if err := pause(ctx, poll); err != nil {
			return err
		}
	}
	return fmt.Errorf("not settled within %v: %s", settleWithin, problem)
}

// unsettled says what is pending or dead; empty: no more than comes and goes.
func (s state) unsettled() string {
	var problems []string
	for _, sink := range s.Sinks {
		if sink.Events > fewPending {
			problems = append(problems, fmt.Sprintf("%d events wait for %s", sink.Events, sink.Sink))
		}
	}
	for _, l := range s.DeadLetters {
		problems = append(problems, fmt.Sprintf("%d dead letters of %s: %s", l.Count, l.Sink, l.Code))
	}
	if len(s.Sinks) < 2 {
		problems = append(problems, fmt.Sprintf("%d sinks; want 2", len(s.Sinks)))
	}
	return strings.Join(problems, "; ")
}

// verify checks that the endpoint has every event of a plan, and the archive every one once. A few
// may still be on their way: what is few enough to be the emitter's is not waited for by settle.
func (t *trial) verify(ctx context.Context, name string) error {
	check := func() error { return errors.Join(t.verifyEndpoint(ctx, name), t.verifyArchive(ctx, name)) }
	for deadline := time.Now().Add(settleWithin); ; {
		err := check()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		if pausing := pause(ctx, poll); pausing != nil {
			return errors.Join(err, pausing)
		}
	}
}

func (t *trial) verifyEndpoint(ctx context.Context, name string) error {
	report, err := t.sent[name].Verify("ingress", roundtrip.EndpointDeliveries(ctx, t.endpointAdmin, 0))
	if err == nil && !report.Complete() {
		err = fmt.Errorf("the endpoint: %+v", report)
	}
	return err
}

func (t *trial) verifyArchive(ctx context.Context, name string) error {
	reader, err := t.s3.ArchiveReader(ctx)
	if err != nil {
		return err
	}
	report, err := t.sent[name].Verify("archive", roundtrip.ArchiveDeliveries(ctx, reader, nil))
	if err == nil && (!report.Complete() || report.Double > 0) {
		err = fmt.Errorf("the archive: %+v", report)
	}
	return err
}

// clock is the highest seqnum of the emitter's events that the endpoint has.
func (t *trial) clock(ctx context.Context) (int64, error) {
	var stats endpoint.Stats
	if err := getJSON(ctx, t.endpointAdmin+"/stats", &stats); err != nil {
		return 0, err
	}
	for _, key := range stats.Keys {
		if key.Source == clockSource {
			return key.HighestSeqnum, nil
		}
	}
	return 0, errors.New("the endpoint has no event of the emitter")
}

// streamCreated is when the stream of events was made.
func (t *trial) streamCreated(ctx context.Context) (time.Time, error) {
	nc, err := nats.Connect(t.nats)
	if err != nil {
		return time.Time{}, fmt.Errorf("connect to NATS: %w", err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return time.Time{}, fmt.Errorf("connect to NATS: %w", err)
	}
	stream, err := js.Stream(ctx, pipeline.EventsStream)
	if err != nil {
		return time.Time{}, fmt.Errorf("look at the stream: %w", err)
	}
	return stream.CachedInfo().Created, nil
}

// traces waits until Jaeger has a trace of an event that all three processes had a part in.
func (t *trial) traces(ctx context.Context) error {
	if t.jaeger == "" {
		t.log.say("    left out: there is no Jaeger")
		return nil
	}
	var seen []string
	for deadline := time.Now().Add(goOnWithin); time.Now().Before(deadline); {
		var err error
		if seen, err = tracedServices(ctx, t.jaeger); err != nil {
			return err
		}
		if slices.Equal(seen, []string{"waybill-forwarder", "waybill-ingest", "waybill-janitor"}) {
			return nil
		}
		if err := pause(ctx, poll); err != nil {
			return err
		}
	}
	return fmt.Errorf("no trace of Jaeger has spans of all three processes; the best one has %v", seen)
}

// tracedServices are the services of the trace with the most of them, of the newest ones that ingest
// has a span in, sorted.
func tracedServices(ctx context.Context, jaeger string) ([]string, error) {
	var answer struct {
		Data []struct {
			Processes map[string]struct {
				ServiceName string `json:"serviceName"`
			} `json:"processes"`
		} `json:"data"`
	}
	query := url.Values{"service": {"waybill-ingest"}, "limit": {"20"}, "lookback": {"1h"}}
	if err := getJSON(ctx, jaeger+"/api/traces?"+query.Encode(), &answer); err != nil {
		return nil, err
	}
	var best []string
	for _, trace := range answer.Data {
		var services []string
		for _, p := range trace.Processes {
			services = append(services, p.ServiceName)
		}
		slices.Sort(services)
		if services = slices.Compact(services); len(services) > len(best) {
			best = services
		}
	}
	return best, nil
}

// getJSON reads the answer of a URL into out.
func getJSON(ctx context.Context, url string, out any) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }() // it was read
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s says %s", url, response.Status)
	}
	if err := json.NewDecoder(io.LimitReader(response.Body, 64<<20)).Decode(out); err != nil {
		return fmt.Errorf("read the answer of %s: %w", url, err)
	}
	return nil
}
