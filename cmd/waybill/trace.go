package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/waybillhq/waybill/internal/collector"
	"github.com/waybillhq/waybill/internal/jaeger"
	"github.com/waybillhq/waybill/internal/journey"
	"github.com/waybillhq/waybill/internal/netfault"
)

// traceCommand shows what became of an event, and where its time went.
type traceCommand struct {
	ID string `arg:"" help:"Id of an event, or a correlation id, which is what several may have in their extension correlationid."`

	QueryURL string    `name:"query-url" secret:"" env:"WAYBILL_TRACE_QUERY_URL" placeholder:"URL" help:"Server with Jaeger's query API, such as http://jaeger:16686. WAYBILL_TRACE_QUERY_URL_FILE names a file that holds it."`
	Since    timePoint `env:"-" default:"24h" placeholder:"TIME" help:"Look at what began at or after this: a time such as 2026-11-25T08:00:00Z, or how long ago, such as 2h."`
	Source   string    `env:"-" help:"Only the event of this source."`
	TraceID  string    `name:"trace-id" env:"-" help:"Only in this trace."`
	All      bool      `env:"-" help:"Print every event that matches, instead of a list where there are several."`
	Limit    int       `env:"-" default:"20" help:"Look at most at this many traces."`
	Services []string  `name:"service" env:"-" default:"waybill-ingest,waybill-forwarder,waybill-janitor" help:"Service names of the processes, where OTEL_SERVICE_NAME gives them others."`
	outputFlag
}

// By what a trace is searched for.
var searched = []string{"messaging.message.conversation_id", "cloudevents.event_id"}

// clockMargin is how far ahead the clocks of the processes may be.
const clockMargin = time.Minute

// Validate refuses flags that cannot work.
func (c *traceCommand) Validate() error {
	switch {
	case c.ID == "":
		return errors.New("<id>: is missing; give the id of an event, or a correlation id: waybill trace 4711")
	case c.QueryURL == "":
		return errors.New("--query-url: is empty; name a server with Jaeger's query API, such as http://jaeger:16686, or set WAYBILL_TRACE_QUERY_URL; or run it where a `waybill dev` runs that keeps traces, or with the directory of one as WAYBILL_DIR")
	case c.Limit < 1:
		return fmt.Errorf("--limit: %d; want at least 1", c.Limit)
	}
	if _, err := jaeger.NewClient(c.QueryURL); err != nil {
		return fmt.Errorf("--query-url (WAYBILL_TRACE_QUERY_URL): %w", err)
	}
	return nil
}

// Run prints the event, or the list of those that match. It fails if there is none.
func (c *traceCommand) Run(ctx context.Context, con *console) error {
	client, err := jaeger.NewClient(c.QueryURL)
	if err != nil {
		return fmt.Errorf("--query-url: %w", err)
	}
	now := time.Now()
	since := c.Since.at(now)
	traces, err := c.search(ctx, client, since, now.Add(clockMargin))
	if err != nil && ctx.Err() == nil {
		if reason, ok := netfault.Reason(err); ok {
			err = errors.New("ask for traces: " + reason)
		}
		err = fmt.Errorf("%w; --query-url (WAYBILL_TRACE_QUERY_URL) is %s: correct it, or start the server", err, client)
	}
	if err != nil {
		return err
	}
	events := c.events(traces)
	switch {
	case len(events) == 0:
		return c.notFound(ctx, client, since)
	case len(events) == 1 || c.All || c.json():
		err = c.show(con, events)
	default:
		err = listEvents(con.out, events)
	}
	if len(traces) >= c.Limit {
		_, _ = fmt.Fprintf(con.err, "waybill: no more than %s looked at, and there may be further ones; --limit takes more\n", plural(len(traces), "trace"))
	}
	return err
}

// search returns the traces in which some span has the id, whole, by the first service that has
// any: all spans of ingest may be missing where it died before it sent them.
func (c *traceCommand) search(ctx context.Context, client *jaeger.Client, since, until time.Time) (traces [][]collector.Span, err error) {
	for _, service := range c.Services {
		found := map[string][]collector.Span{}
		for _, attribute := range searched {
			some, err := client.Find(ctx, jaeger.Search{Service: service, Attribute: attribute, Value: c.ID, Since: since, Until: until, Limit: c.Limit})
			if err != nil {
				return nil, err
			}
			for _, spans := range some {
				found[spans[0].TraceID] = spans
			}
		}
		for id, spans := range found {
			if c.TraceID != "" && !sameTrace(c.TraceID, id) {
				continue
			}
			whole, err := client.Trace(ctx, id)
			if errors.Is(err, jaeger.ErrNoTrace) { // it went in between
				whole, err = spans, nil
			}
			if err != nil {
				return nil, err
			}
			traces = append(traces, whole)
		}
		if len(traces) > 0 {
			break
		}
	}
	return traces, nil
}

// sameTrace compares two ids as people copy them: servers leave zeros at the beginning out.
func sameTrace(a, b string) bool {
	return strings.EqualFold(strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0"))
}

// events are those of the traces that are meant, by their beginning.
func (c *traceCommand) events(traces [][]collector.Span) (events []*journey.Event) {
	for _, spans := range traces {
		for _, e := range journey.Events(spans) {
			if (e.ID == c.ID || e.Correlation == c.ID) && (c.Source == "" || e.Source == c.Source) {
				events = append(events, e)
			}
		}
	}
	slices.SortFunc(events, func(a, b *journey.Event) int {
		return cmp.Or(a.Spans[0].Start.Compare(b.Spans[0].Start), cmp.Compare(a.TraceID, b.TraceID), cmp.Compare(a.ID, b.ID))
	})
	return events
}

// notFound says what was asked, and what there is to check.
func (c *traceCommand) notFound(ctx context.Context, client *jaeger.Client, since time.Time) error {
	knows := "it does not say which services it knows"
	if services, err := client.Services(ctx); err == nil {
		slices.Sort(services)
		knows = "it knows no service"
		if len(services) > 0 {
			knows = "it knows " + strings.Join(services, ", ")
		}
	}
	among := ""
	if c.Source != "" {
		among += " of source " + c.Source
	}
	if c.TraceID != "" {
		among += " in trace " + c.TraceID
	}
	return fmt.Errorf(`no event%s whose id or correlation id is %q has spans of %s since %s at %s (%s). What may be the cause:
  - its spans have not come yet: a process sends them every 5 s unless OTEL_BSP_SCHEDULE_DELAY says otherwise
  - it was not sampled: a process traces a hundredth unless OTEL_TRACES_SAMPLER_ARG says otherwise, and nothing whose traceparent is not sampled
  - its spans went elsewhere, or nowhere: OTEL_EXPORTER_OTLP_ENDPOINT of the processes
  - it is older than --since, or than what is kept there: a `+"`waybill dev`"+` keeps spans in memory, from its start on
  - of a request with many events, only the first 128 that are sampled have spans`,
		among, c.ID, strings.Join(c.Services, ", "), since.UTC().Format(time.RFC3339), client, knows)
}

func (c *traceCommand) show(con *console, events []*journey.Event) error {
	for i, e := range events {
		if c.json() {
			if err := c.print(con, "", newTracedEvent(e)); err != nil {
				return err
			}
			continue
		}
		if i > 0 {
			_, _ = fmt.Fprintln(con.out) // what follows tells of a failure
		}
		if err := writeEvent(con.out, e); err != nil {
			return err
		}
	}
	return nil
}
