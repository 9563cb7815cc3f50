package intake

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"time"
)

// reserve takes the bytes of a request's body, and of the encodings made of it, before any
// of it is read: of the declared length, or of the whole limit where none is declared.
func (h *httpFront) reserve(r *http.Request) (*reservation, *problem) {
	if refused, ok := h.intake.admit(); !ok {
		return nil, refused.problem()
	}
	limit := int64(h.intake.config.MaxRequestBytes)
	length := r.ContentLength
	if length > limit {
		return nil, h.requestTooLarge()
	}
	if length < 0 {
		length = limit
	}
	held, ok := h.intake.budget.reserve(arrivalBytes(length) + requestOverhead)
	if !ok {
		return nil, h.intake.overBudget().problem()
	}
	return held, nil
}

func (h *httpFront) requestTooLarge() *problem {
	return newProblem(http.StatusRequestEntityTooLarge, "request-too-large", "Request too large",
		"the body is larger than the limit of %d bytes; split the batch", h.intake.config.MaxRequestBytes)
}

// readBody reads the whole body within the request limit and the read deadline, which it
// then lifts: it would end the wait for the commit.
func (h *httpFront) readBody(w http.ResponseWriter, r *http.Request) ([]byte, *problem) {
	if watched, ok := w.(*statusWriter); ok {
		w = watched.ResponseWriter // the server's own closes the connection of a body that is too large
	}
	body, err := readAll(http.MaxBytesReader(w, r.Body, int64(h.intake.config.MaxRequestBytes)), r.ContentLength)
	if err == nil {
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
		return body, nil
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, h.requestTooLarge()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, newProblem(http.StatusRequestTimeout, "body-timeout", "Body too slow",
			"the body did not arrive within %v; nothing was stored", h.intake.config.BodyTimeout).with("Connection", "close")
	default:
		return nil, newProblem(http.StatusBadRequest, "incomplete-body", "Incomplete body",
			"the body ended before its end; nothing was stored").with("Connection", "close")
	}
}

// readAll reads to the end, without growing a buffer where the length is known.
func readAll(r io.Reader, length int64) ([]byte, error) {
	if length >= 0 {
		body := make([]byte, length)
		_, err := io.ReadFull(r, body)
		return body, err
	}
	var b bytes.Buffer
	_, err := b.ReadFrom(r)
	return b.Bytes(), err
}
