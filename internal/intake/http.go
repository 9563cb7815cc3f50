package intake

import (
	"errors"
	"net/http"
	"strings"
	"time"

	"go.opentelemetry.io/otel/propagation"
)

// EventsPath is where HTTP takes events.
const EventsPath = "/v1/events"

// contentTypes are what a request can be sent as, in the words of a refusal.
const contentTypes = "application/cloudevents+json, application/cloudevents-batch+json, " +
	"application/cloudevents+protobuf or application/cloudevents-batch+protobuf, " +
	"or any content type with the event's attributes in ce- headers"

// httpFront is the HTTP face of an intake.
type httpFront struct{ intake *Intake }

// NewHTTP returns the handler of POST /v1/events, as docs/api.md describes it. Every other
// path is answered with 404. It sets read and write deadlines of its own, so the server
// needs a ReadHeaderTimeout and an IdleTimeout but no ReadTimeout and no WriteTimeout.
func NewHTTP(in *Intake) http.Handler {
	front := &httpFront{intake: in}
	mux := http.NewServeMux()
	mux.HandleFunc(EventsPath, front.timed(EventsPath, front.serveEvents))
	mux.HandleFunc("/", front.timed("", front.serveNothing))
	return mux
}

func (h *httpFront) serveNothing(w http.ResponseWriter, _ *http.Request) {
	h.writeProblem(w, newProblem(http.StatusNotFound, "not-found", "Not found",
		"events are sent to POST %s", EventsPath))
}

// serveEvents answers one request, either with a problem or by way of accept.
func (h *httpFront) serveEvents(w http.ResponseWriter, r *http.Request) {
	started := time.Now()
	// For refused requests too: the server reads on behind them before it answers.
	_ = http.NewResponseController(w).SetReadDeadline(started.Add(h.intake.config.BodyTimeout))
	m, p := h.admit(r)
	if p != nil {
		h.refuse(w, p)
		return
	}
	held, p := h.reserve(r)
	if p != nil {
		h.refuse(w, p)
		return
	}
	defer held.release()
	items, p := h.read(w, r, m, held)
	if p != nil {
		h.refuse(w, p)
		return
	}
	h.accept(w, r, started, m, items, held)
}

func (h *httpFront) refuse(w http.ResponseWriter, p *problem) {
	h.intake.metrics.refusedUnread(frontHTTP, p.name())
	h.writeProblem(w, p)
}

// admit checks what the headers say of the kind of request.
func (h *httpFront) admit(r *http.Request) (mode, *problem) {
	if r.Method != http.MethodPost {
		return modeNone, newProblem(http.StatusMethodNotAllowed, "method-not-allowed", "Method not allowed",
			"%s takes POST only", EventsPath).with("Allow", http.MethodPost)
	}
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return modeNone, newProblem(http.StatusUnsupportedMediaType, "unsupported-content-encoding", "Unsupported content encoding",
			"the body is encoded as %q; send it as it is", encoding).with("Accept-Encoding", "identity")
	}
	m := modeOf(r.Header)
	if m == modeNone {
		return m, newProblem(http.StatusUnsupportedMediaType, "unsupported-media-type", "Not a CloudEvent",
			"the request has the content type %q and is no CloudEvent that is understood here; send UTF-8 as %s",
			r.Header.Get("Content-Type"), contentTypes)
	}
	return m, nil
}

// accept submits what may be stored and answers.
func (h *httpFront) accept(w http.ResponseWriter, r *http.Request, started time.Time, m mode, items []item, held *reservation) {
	faults, _ := countFaults(items)
	lenient := m.batched() && isLenient(r.Header)
	if faults > 0 && !lenient {
		held.release()
		h.intake.metrics.refusedAll(items)
		h.writeProblem(w, problemOfFaults(items, m.batched()))
		return
	}
	if err := h.intake.submit(frontHTTP, started, items, held); err != nil {
		h.writeProblem(w, h.intake.refusalOf(err).problem())
		return
	}
	if lenient {
		h.writeResults(w, items)
		return
	}
	h.writeJSON(w, http.StatusOK, "application/json", acceptedResponse{Accepted: len(items)})
}

// acceptedResponse is the body of 200, and the beginning of 207's.
type acceptedResponse struct {
	Accepted int `json:"accepted"`
}

// resultsResponse is the body of 207.
type resultsResponse struct {
	acceptedResponse
	Refused int           `json:"refused"`
	Results []eventResult `json:"results"`
}

// eventResult is what became of one event: 200 stored, 400 invalid, 413 too large.
type eventResult struct {
	Index     int    `json:"index"`
	ID        string `json:"id,omitempty"`
	Status    int    `json:"status"`
	Attribute string `json:"attribute,omitempty"`
	Detail    string `json:"detail,omitempty"`
}

func (h *httpFront) writeResults(w http.ResponseWriter, items []item) {
	response := resultsResponse{Results: make([]eventResult, 0, len(items))}
	for i := range items {
		result := eventResult{Index: i, ID: items[i].id, Status: http.StatusOK}
		if fault := items[i].fault; fault != nil {
			result.Attribute, result.Detail = fault.Attribute, fault.Reason
			result.Status = http.StatusBadRequest
			if fault.TooLarge {
				result.Status = http.StatusRequestEntityTooLarge
			}
			response.Refused++
		}
		response.Results = append(response.Results, result)
	}
	response.Accepted = len(items) - response.Refused
	w.Header().Set("Preference-Applied", "handling=lenient")
	h.writeJSON(w, http.StatusMultiStatus, "application/json", response)
}

// read reads the body and the events in it. On return the reservation holds what the
// events hold.
func (h *httpFront) read(w http.ResponseWriter, r *http.Request, m mode, held *reservation) ([]item, *problem) {
	body, p := h.readBody(w, r)
	if p != nil {
		return nil, p
	}
	e := &encoder{
		maxEventBytes: h.intake.config.MaxEventBytes, dedupeAttribute: h.intake.config.DedupeAttribute,
		trace: traceOf(propagation.HeaderCarrier(r.Header)),
	}
	items, err := h.intake.decode(m, r.Header, body, e)
	switch {
	case errors.Is(err, errTooManyEvents):
		return nil, newProblem(http.StatusRequestEntityTooLarge, "too-many-events", "Too many events",
			"the batch holds more than %d events; split it", h.intake.config.MaxRequestEvents)
	case err != nil:
		return nil, newProblem(http.StatusBadRequest, "malformed-body", "Malformed body", "%v; nothing was stored", err)
	}
	if !held.resize(e.held(items) + requestOverhead) {
		return nil, h.intake.overBudget().problem()
	}
	return items, nil
}
