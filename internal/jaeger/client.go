package jaeger

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/waybillhq/waybill/internal/collector"
)

// Client asks a server. It is safe for concurrent use.
type Client struct {
	base *url.URL      // without user and password
	user *url.Userinfo // nil: there is none
	http *http.Client
}

const (
	// askTimeout bounds one question: a store on disks may have much to look through.
	askTimeout = 30 * time.Second
	// maxAnswerBytes bounds what is read of an answer.
	maxAnswerBytes = 64 << 20
)

// ErrNoTrace is what a trace that the server does not have is answered with.
var ErrNoTrace = errors.New("there is no such trace")

// NewClient returns a client of the server at a URL, such as http://jaeger:16686; what is served
// below a path has that path in it. A user and a password in the URL are used.
func NewClient(address string) (*Client, error) {
	base, err := url.Parse(address)
	if err != nil {
		// Its error has the address, and with it a password, in it.
		return nil, errors.New("not a URL; want one such as http://jaeger:16686")
	}
	if base.Scheme != "http" && base.Scheme != "https" || base.Host == "" {
		return nil, fmt.Errorf("scheme %q and host %q: want a URL such as http://jaeger:16686", base.Scheme, base.Host)
	}
	user := base.User
	base.User = nil
	return &Client{base: base, user: user, http: &http.Client{Timeout: askTimeout}}, nil
}

// String is the address, without user and password: a user alone may be a token.
func (c *Client) String() string { return c.base.String() }

// Search picks traces that have a span of a service with an attribute, which began in a time.
type Search struct {
	Service, Attribute, Value string
	Since, Until              time.Time
	Limit                     int // of traces
}

// Find returns the traces that match, the spans of each in any order. A server may leave spans of
// them out.
func (c *Client) Find(ctx context.Context, s Search) ([][]collector.Span, error) {
	tags, err := json.Marshal(map[string]string{s.Attribute: s.Value})
	if err != nil {
		return nil, fmt.Errorf("encode what is searched for: %w", err)
	}
	var found answer[trace]
	err = c.get(ctx, &found, url.Values{
		"service": {s.Service}, "tags": {string(tags)}, "limit": {strconv.Itoa(s.Limit)},
		"start": {strconv.FormatInt(s.Since.UnixMicro(), 10)}, "end": {strconv.FormatInt(s.Until.UnixMicro(), 10)},
	}, "api", "traces")
	if err != nil {
		return nil, err
	}
	out := make([][]collector.Span, 0, len(found.Data))
	for i := range found.Data {
		if spans := found.Data[i].spans(); len(spans) > 0 {
			out = append(out, spans)
		}
	}
	return out, nil
}

// Trace returns the spans of a trace, as they were sent: a server may be told to shift those of
// other hosts so that each lies within its parent, where most of Waybill's do not.
func (c *Client) Trace(ctx context.Context, id string) ([]collector.Span, error) {
	var found answer[trace]
	if err := c.get(ctx, &found, url.Values{"raw": {"true"}}, "api", "traces", id); err != nil {
		return nil, err
	}
	var out []collector.Span
	for i := range found.Data {
		out = append(out, found.Data[i].spans()...)
	}
	if len(out) == 0 {
		return nil, ErrNoTrace
	}
	return out, nil
}

// Services are the names of the services that the server knows.
func (c *Client) Services(ctx context.Context) ([]string, error) {
	var found answer[string]
	err := c.get(ctx, &found, nil, "api", "services")
	return found.Data, err
}

// get asks for what is at a path, below the server's own, and reads the answer.
func (c *Client) get(ctx context.Context, into any, query url.Values, path ...string) error {
	u := c.base.JoinPath(path...)
	u.RawQuery = query.Encode()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return fmt.Errorf("ask %s: %w", c, err)
	}
	if c.user != nil {
		password, _ := c.user.Password()
		request.SetBasicAuth(c.user.Username(), password)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return fmt.Errorf("ask for traces: %w", err) // it names the URL
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswerBytes))
	if err != nil {
		return fmt.Errorf("read the answer of %s: %w", c, err)
	}
	if response.StatusCode != http.StatusOK {
		return refusal(c, u.Path, response, body)
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber() // of large ones, too, the digits are wanted
	if err := decoder.Decode(into); err != nil {
		return fmt.Errorf("the answer of %s to %s is not that of Jaeger's query API: %w", c, u.Path, err)
	}
	return nil
}

// refusal is the error of an answer that is not 200.
func refusal(c *Client, path string, response *http.Response, body []byte) error {
	var said answer[json.RawMessage]
	text := strings.TrimSpace(string(body[:min(len(body), 200)]))
	known := json.Unmarshal(body, &said) == nil && len(said.Errors) > 0
	if known {
		text = said.Errors[0].Msg
	}
	if response.StatusCode == http.StatusNotFound && known {
		return fmt.Errorf("%s: %w", c, ErrNoTrace)
	}
	return fmt.Errorf("%s answers %s with %s: %s", c, path, response.Status, text)
}
