package jaeger

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/waybillhq/waybill/internal/collector"
)

// Source has the traces that a Handler offers.
type Source interface {
	// Find returns the newest traces of which some span matches, at most limit.
	Find(limit int, match func(*collector.Span) bool) [][]collector.Span
	// Trace returns the spans of a trace, by their beginning; none: there is no such trace.
	Trace(id string) []collector.Span
	// Services are the names of the services that have spans.
	Services() []string
}

var _ Source = (*collector.Recent)(nil)

// Jaeger's own, of a search that does not say.
const (
	defaultLimit    = 100
	defaultLookback = 48 * time.Hour
)

// Handler offers the traces of a source.
func Handler(source Source) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/services", func(w http.ResponseWriter, _ *http.Request) {
		names := source.Services()
		write(w, http.StatusOK, answer[string]{Data: names, Total: len(names)})
	})
	mux.HandleFunc("GET /api/traces", func(w http.ResponseWriter, r *http.Request) {
		q, err := parseQuery(r, time.Now())
		if err != nil {
			fail(w, http.StatusBadRequest, err.Error())
			return
		}
		out := answer[trace]{Data: []trace{}}
		for _, spans := range source.Find(q.limit, q.matches) {
			out.Data = append(out.Data, traceOf(spans))
		}
		write(w, http.StatusOK, out)
	})
	mux.HandleFunc("GET /api/traces/{id}", func(w http.ResponseWriter, r *http.Request) {
		spans := source.Trace(padded(r.PathValue("id"), traceDigits))
		if len(spans) == 0 {
			fail(w, http.StatusNotFound, "trace not found")
			return
		}
		write(w, http.StatusOK, answer[trace]{Data: []trace{traceOf(spans)}})
	})
	return mux
}

func fail(w http.ResponseWriter, status int, text string) {
	write(w, status, answer[trace]{Errors: []failed{{status, text}}})
}

func write[T any](w http.ResponseWriter, status int, body answer[T]) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // who asked has gone
}

// query picks traces that have a span of which all is true.
type query struct {
	service, operation string
	tags               map[string]string
	since, until       time.Time     // of the beginning
	least, most        time.Duration // of the length; most 0: any
	limit              int
}

// parseQuery reads the query of a search, as Jaeger has it: what is missing but service has a
// default.
func parseQuery(r *http.Request, now time.Time) (q query, err error) {
	form := r.URL.Query()
	q = query{
		service: form.Get("service"), operation: form.Get("operation"), tags: map[string]string{},
		since: now.Add(-defaultLookback), until: now, limit: defaultLimit,
	}
	if q.service == "" {
		return q, errors.New("parameter 'service' is required")
	}
	for _, pair := range form["tag"] {
		key, value, ok := strings.Cut(pair, ":")
		if !ok {
			return q, fmt.Errorf("malformed 'tag' parameter, expecting key:value, received: %s", pair)
		}
		q.tags[key] = value
	}
	for _, list := range form["tags"] {
		if err := json.Unmarshal([]byte(list), &q.tags); err != nil {
			return q, fmt.Errorf("malformed 'tags' parameter, cannot unmarshal JSON: %w", err)
		}
	}
	for name, read := range map[string]func(text string) error{
		"start": func(text string) (err error) { q.since, err = microseconds(text); return err },
		"end":   func(text string) (err error) { q.until, err = microseconds(text); return err },
		"limit": func(text string) (err error) { q.limit, err = strconv.Atoi(text); return err },

		"minDuration": func(text string) (err error) { q.least, err = time.ParseDuration(text); return err },
		"maxDuration": func(text string) (err error) { q.most, err = time.ParseDuration(text); return err },
	} {
		if text := form.Get(name); text != "" {
			if err := read(text); err != nil {
				return q, fmt.Errorf("unable to parse param '%s': %w", name, err)
			}
		}
	}
	return q, nil
}

func microseconds(text string) (time.Time, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	return time.UnixMicro(n), err
}

func (q query) matches(s *collector.Span) bool {
	if s.Service != q.service || q.operation != "" && s.Name != q.operation || s.Start.Before(q.since) || s.Start.After(q.until) ||
		s.Took() < q.least || q.most > 0 && s.Took() > q.most {
		return false
	}
	for key, value := range q.tags {
		if s.Attributes[key] != value && (key != tagError || strconv.FormatBool(s.Failure != "") != value) {
			return false
		}
	}
	return true
}
