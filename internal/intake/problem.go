package intake

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"
)

// problemPrefix begins the type of every problem. The types are names, not addresses.
const problemPrefix = "urn:waybill:problem:"

// problem is an RFC 9457 problem document, and what else its response needs.
type problem struct {
	Type   string       `json:"type"`
	Title  string       `json:"title"`
	Status int          `json:"status"`
	Detail string       `json:"detail"`
	Errors []eventError `json:"errors,omitempty"`

	retryAfter time.Duration
	header     http.Header // further headers
}

// eventError is what is wrong with one event of a request.
type eventError struct {
	Index     int    `json:"index"`
	ID        string `json:"id,omitempty"`
	Attribute string `json:"attribute"`
	Detail    string `json:"detail"`
}

func newProblem(status int, name, title, format string, args ...any) *problem {
	return &problem{
		Type: problemPrefix + name, Title: title, Status: status,
		Detail: fmt.Sprintf(format, args...),
	}
}

// name is the last part of the type, and the reason in metrics.
func (p *problem) name() string { return p.Type[len(problemPrefix):] }

// with adds a header to the response.
func (p *problem) with(name, value string) *problem {
	if p.header == nil {
		p.header = make(http.Header, 1)
	}
	p.header.Set(name, value)
	return p
}

func (r refusal) problem() *problem {
	p := newProblem(r.httpStatus, r.reason, r.title, "%s", r.detail)
	p.retryAfter = r.retryAfter
	return p
}

// problemOfFaults names each bad event. The status is 413 if size is the only fault.
func problemOfFaults(items []item, batched bool) *problem {
	faults, tooLarge := countFaults(items)
	what := "the event is not valid"
	if batched {
		what = fmt.Sprintf("%d of %d events are not valid", faults, len(items))
	}
	p := newProblem(http.StatusBadRequest, "invalid-event", "Invalid event", "%s; nothing was stored", what)
	if faults == tooLarge {
		p = newProblem(http.StatusRequestEntityTooLarge, "event-too-large", "Event too large",
			"%d of %d events are larger than the limit; nothing was stored", faults, len(items))
	}
	p.Errors = make([]eventError, 0, faults)
	for i := range items {
		if fault := items[i].fault; fault != nil {
			p.Errors = append(p.Errors, eventError{
				Index: i, ID: items[i].id, Attribute: fault.Attribute, Detail: fault.Reason,
			})
		}
	}
	return p
}

func (h *httpFront) writeProblem(w http.ResponseWriter, p *problem) {
	for name, values := range p.header {
		w.Header()[name] = values
	}
	if p.retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(p.retryAfter.Seconds()))))
	}
	h.writeJSON(w, p.Status, "application/problem+json", p)
}

// writeJSON writes a response within twice the body timeout: before a refusal goes out the
// server reads on in the refused body, which the read deadline ends, and then the client
// has the time once more. The server lifts the deadline behind the response.
func (h *httpFront) writeJSON(w http.ResponseWriter, status int, contentType string, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		// Nothing here can fail to encode: all of it is text and numbers.
		http.Error(w, "the response could not be encoded", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", contentType)
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(2 * h.intake.config.BodyTimeout)) // a server that has none is a test's
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // a client that is gone needs no answer
}
