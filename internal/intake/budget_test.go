package intake

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// slowRequest is a request whose body does not come.
type slowRequest struct {
	net.Conn
	answer *bufio.Reader
}

func mustBeginRequest(t *testing.T, s *site, framing, body string) *slowRequest {
	t.Helper()
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_, err = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\n%s\r\n\r\n%s", EventsPath, structuredType, framing, body)
	if err != nil {
		t.Fatal(err)
	}
	return &slowRequest{Conn: conn, answer: bufio.NewReader(conn)}
}

func (r *slowRequest) status(t *testing.T) int {
	t.Helper()
	if err := r.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(r.answer, nil)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	return response.StatusCode
}

// TestBudgetBeforeBody: the bytes are taken before the body comes, the whole limit where
// the length is not known, and come back when the client leaves.
func TestBudgetBeforeBody(t *testing.T) {
	const limit = 10_000
	s := mustSite(t, func(c *Config) {
		c.MaxEventBytes, c.MaxRequestBytes = limit, limit
		c.BudgetBytes = 2*(arrivalBytes(limit)+requestOverhead) + 2000
	})
	declared := mustBeginRequest(t, s, "Content-Length: 1000", "")
	eventually(t, "the declared length is taken", func() bool { return s.intake.Budget().Used() == arrivalBytes(1000)+requestOverhead })
	declared.Close()
	checkReleased(t, s.intake)
	first := mustBeginRequest(t, s, "Transfer-Encoding: chunked", "1\r\n{\r\n")
	second := mustBeginRequest(t, s, "Transfer-Encoding: chunked", "")
	eventually(t, "the limit is taken twice", func() bool { return s.intake.Budget().Used() == 2*(arrivalBytes(limit)+requestOverhead) })

	r := s.post(t, eventJSON("x"), "Content-Type", structuredType)
	r.problem(t, http.StatusTooManyRequests, "overloaded")
	if r.header.Get("Retry-After") != "1" {
		t.Errorf("headers %v", r.header)
	}
	first.Close()
	eventually(t, "one comes back", func() bool { return s.intake.Budget().Used() == arrivalBytes(limit)+requestOverhead })
	s.post(t, eventJSON("x"), "Content-Type", structuredType).accepted(t, 1)
	rest := eventJSON("late")
	fmt.Fprintf(second, "%x\r\n%s\r\n0\r\n\r\n", len(rest), rest)
	if status := second.status(t); status != http.StatusOK {
		t.Errorf("the slow one got %d", status)
	}
	checkReleased(t, s.intake)
}

// TestBudgetWhileWaiting: while an event waits for its commit the request holds what the
// event holds and no longer what its body did.
func TestBudgetWhileWaiting(t *testing.T) {
	s := mustSite(t, nil)
	s.recorder.held = true
	slow := mustBeginRequest(t, s, "Transfer-Encoding: chunked", fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(eventJSON("1")), eventJSON("1")))
	s.recorder.waitUnits(t, 1)
	if used := s.intake.Budget().Used(); used <= requestOverhead || used > requestOverhead+200 {
		t.Errorf("%d bytes are held for an event of about 100", used)
	}
	s.recorder.answer(0, nil)
	if status := slow.status(t); status != http.StatusOK {
		t.Errorf("status %d", status)
	}
	checkReleased(t, s.intake)
}

// TestTraceGrowsReservation: a batch of tiny events that gets a long trace state grows
// beyond its body, and may not grow beyond the budget.
func TestTraceGrowsReservation(t *testing.T) {
	s := mustSite(t, func(c *Config) { c.MaxEventBytes, c.MaxRequestBytes, c.BudgetBytes = 6000, 6000, 16_100 })
	s.post(t, "["+strings.Repeat(eventJSON("x")+",", 60)+eventJSON("x")+"]", "Content-Type", batchType,
		"traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		"tracestate", "v="+strings.Repeat("x", 200)).problem(t, http.StatusTooManyRequests, "overloaded")
	checkReleased(t, s.intake)
}

func TestBodyTimeout(t *testing.T) {
	s := mustSite(t, func(c *Config) { c.BodyTimeout = 250 * time.Millisecond })
	slow := mustBeginRequest(t, s, "Content-Length: 100", "{")
	if status := slow.status(t); status != http.StatusRequestTimeout {
		t.Errorf("status %d", status)
	}
	refused := mustBeginRequest(t, s, "Content-Encoding: gzip\r\nContent-Length: 100", "{")
	if status := refused.status(t); status != http.StatusUnsupportedMediaType {
		t.Errorf("status %d of a refused request whose body does not come", status)
	}
	checkReleased(t, s.intake)
}

// TestCommitOutlastsBodyTimeout: the deadline for the body does not end the wait for the
// commit, nor spoil the connection's next request.
func TestCommitOutlastsBodyTimeout(t *testing.T) {
	s := mustSite(t, func(c *Config) { c.BodyTimeout = shortTimeout })
	s.recorder.held = true
	request := mustBeginRequest(t, s, fmt.Sprintf("Content-Length: %d", len(eventJSON("1"))), eventJSON("1"))
	for unit := range 2 {
		s.recorder.waitUnits(t, unit+1)
		<-time.After(2 * shortTimeout) // twice the deadline
		s.recorder.answer(unit, nil)
		if status := request.status(t); status != http.StatusOK {
			t.Errorf("request %d: status %d", unit, status)
		}
		if unit == 0 {
			fmt.Fprintf(request, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s",
				EventsPath, structuredType, len(eventJSON("2")), eventJSON("2"))
		}
	}
}

// TestNoDeadlineLeftBehind: what else the server serves on the connection is not under
// the deadlines of an earlier request.
func TestNoDeadlineLeftBehind(t *testing.T) {
	in := mustIntake(t, newRecorder(), func(c *Config) { c.BodyTimeout = shortTimeout })
	mux := http.NewServeMux()
	mux.Handle(EventsPath, NewHTTP(in))
	mux.HandleFunc("/other", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) })
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	s := &site{Server: server}
	request := mustBeginRequest(t, s, fmt.Sprintf("Content-Length: %d", len(eventJSON("1"))), eventJSON("1"))
	if status := request.status(t); status != http.StatusOK {
		t.Errorf("status %d", status)
	}
	<-time.After(2 * shortTimeout) // until every deadline has passed
	fmt.Fprint(request, "GET /other HTTP/1.1\r\nHost: x\r\n\r\n")
	if status := request.status(t); status != http.StatusNoContent {
		t.Errorf("status %d", status)
	}
}

func TestConfigNamesEveryFault(t *testing.T) {
	err := Config{}.Validate()
	for _, field := range []string{
		"MaxEventBytes", "BudgetBytes", "MaxRequestEvents", "BodyTimeout", "RetryAfter",
		"UnavailableRetryAfter", "MaxStreams", "MinPing", "StreamInFlight", "Meter",
	} {
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s is not named in: %v", field, err)
		}
	}
	if err := DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
	if _, err := New(Config{}, newRecorder()); err == nil {
		t.Error("New took a configuration that is not valid")
	}
}
