package producer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"

	"github.com/waybillhq/waybill/internal/cloudevent"
	"github.com/waybillhq/waybill/internal/netfault"
)

const (
	// httpTimeout bounds one request; ingest answers within its own, shorter, bounds.
	httpTimeout = time.Minute
	// eventsPath is where ingest takes events.
	eventsPath = "/v1/events"
	// answerBytes bounds what is read of an answer.
	answerBytes = 16 << 20
	// idleConns is above what a bounded number of callers uses at once.
	idleConns = 256
)

// HTTP sends to POST /v1/events.
type HTTP struct {
	url    string
	binary bool
	client *http.Client
}

var _ Sender = (*HTTP)(nil)

// NewHTTP returns a sender to an ingest at a URL such as http://127.0.0.1:8080; one with a
// path is used as it is. One event is sent in structured mode, or in binary mode, with an
// attribute a header, if binary is set; several are one batch.
func NewHTTP(target string, binary bool) (*HTTP, error) {
	u, err := url.Parse(target)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, fmt.Errorf("%q is no address; want one such as http://127.0.0.1:8080", target)
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = eventsPath
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost = idleConns, idleConns
	return &HTTP{url: u.String(), binary: binary, client: &http.Client{Timeout: httpTimeout, Transport: transport}}, nil
}

// Close ends idle connections.
func (h *HTTP) Close() { h.client.CloseIdleConnections() }

// Send implements Sender.
func (h *HTTP) Send(ctx context.Context, events []*pb.CloudEvent) []error {
	request, err := h.request(ctx, events)
	if err != nil {
		return all(len(events), err)
	}
	response, err := h.client.Do(request)
	if err != nil {
		// Who was never reached cannot have stored anything.
		if reason, ok := unreached(err); ok {
			return all(len(events), &TryAgainError{Err: &UnreachableError{Reason: reason, Err: err}})
		}
		if reason, ok := netfault.Mismatch(err.Error()); ok {
			return all(len(events), &RefusedError{Reason: reason})
		}
		return all(len(events), &TryAgainError{Unknown: true, Err: err})
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, answerBytes))
	if err != nil {
		return all(len(events), &TryAgainError{Unknown: true, Err: fmt.Errorf("read the answer: %w", err)})
	}
	return readAnswer(response, body, len(events))
}

// unreached reports that no connection was made, and why.
func unreached(err error) (reason string, ok bool) {
	var name *net.DNSError
	var dial *net.OpError
	if !errors.As(err, &name) && !(errors.As(err, &dial) && dial.Op == "dial") {
		return "", false
	}
	return netfault.Reason(err)
}

func (h *HTTP) request(ctx context.Context, events []*pb.CloudEvent) (*http.Request, error) {
	if len(events) == 1 && h.binary {
		return h.binaryRequest(ctx, events[0])
	}
	var body []byte
	var err error
	for i, ce := range events {
		if i > 0 {
			body = append(body, ',')
		}
		if body, err = AppendJSON(body, ce); err != nil {
			return nil, err
		}
	}
	mode := "application/cloudevents+json"
	if len(events) != 1 {
		mode = "application/cloudevents-batch+json"
		body = append(append([]byte{'['}, body...), ']')
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, h.url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", mode)
	if len(events) != 1 {
		request.Header.Set("Prefer", "handling=lenient") // one bad event does not keep the others out
	}
	return request, nil
}

func (h *HTTP) binaryRequest(ctx context.Context, ce *pb.CloudEvent) (*http.Request, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, h.url, bytes.NewReader(cloudevent.Data(ce)))
	if err != nil {
		return nil, err
	}
	header := request.Header
	header.Set("Ce-Specversion", ce.GetSpecVersion())
	header.Set("Ce-Id", headerValue(ce.GetId()))
	header.Set("Ce-Source", headerValue(ce.GetSource()))
	header.Set("Ce-Type", headerValue(ce.GetType()))
	for name, value := range ce.GetAttributes() {
		if name == "datacontenttype" {
			header.Set("Content-Type", value.GetCeString())
			continue
		}
		header.Set("Ce-"+name, headerValue(cloudevent.Text(value)))
	}
	return request, nil
}

// headerValue encodes what the CloudEvents HTTP binding wants encoded.
func headerValue(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' || c == '"' || c == '%' {
			fmt.Fprintf(&b, "%%%02X", c)
			continue
		}
		b.WriteByte(c)
	}
	return b.String()
}

// answer is what all answers of ingest are made of.
type answer struct {
	// Of 207.
	Results []eventAnswer `json:"results"`
	// Of problems.
	Type   string        `json:"type"`
	Detail string        `json:"detail"`
	Errors []eventAnswer `json:"errors"`
}

type eventAnswer struct {
	Index     int    `json:"index"`
	Status    int    `json:"status"`
	Attribute string `json:"attribute"`
	Detail    string `json:"detail"`
}

func (a eventAnswer) refusal() error {
	return &RefusedError{Reason: a.Attribute + ": " + a.Detail}
}

// readAnswer turns an answer into an error per event.
func readAnswer(response *http.Response, body []byte, events int) []error {
	var a answer
	parsed := json.Unmarshal(body, &a) == nil
	switch status := response.StatusCode; {
	case status == http.StatusMultiStatus:
		return a.results(events)
	case status >= 200 && status < 300:
		return make([]error, events)
	case status == http.StatusTooManyRequests || status >= 500:
		// Only what says so stored nothing.
		known := status == http.StatusTooManyRequests || strings.HasSuffix(a.Type, ":unavailable") || strings.HasSuffix(a.Type, ":overloaded")
		return all(events, &TryAgainError{After: retryAfter(response.Header), Unknown: !known, Err: fmt.Errorf("%s: %s", response.Status, a.Detail)})
	case parsed && len(a.Errors) > 0:
		errs := all(events, &RefusedError{Reason: "another event of the request is not valid"})
		for _, e := range a.Errors {
			if e.Index >= 0 && e.Index < events {
				errs[e.Index] = e.refusal()
			}
		}
		return errs
	default:
		if a.Detail == "" {
			a.Detail = "who answers is no ingest, or none at this path; correct the address"
		}
		return all(events, &RefusedError{Reason: fmt.Sprintf("%s: %s", response.Status, a.Detail)})
	}
}

// results are the errors of a lenient answer. An event without a result is not accepted.
func (a answer) results(events int) []error {
	errs := all(events, &TryAgainError{Unknown: true, Err: errors.New("the answer has no result for the event")})
	for _, r := range a.Results {
		switch {
		case r.Index < 0 || r.Index >= events:
		case r.Status == http.StatusOK:
			errs[r.Index] = nil
		default:
			errs[r.Index] = r.refusal()
		}
	}
	return errs
}

// retryAfter reads the header's seconds; HTTP dates, which ingest does not send, are 0.
func retryAfter(header http.Header) time.Duration {
	seconds, err := strconv.Atoi(header.Get("Retry-After"))
	if err != nil || seconds < 0 {
		return 0
	}
	return time.Duration(seconds) * time.Second
}
