package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// patience bounds a wait for what must come about; no test waits for it to pass.
const patience = time.Minute

// start runs a proxy before a server that counts requests and answers each.
func start(t *testing.T) (p *Proxy, url string, done *atomic.Int64) {
	t.Helper()
	done = new(atomic.Int64)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		done.Add(1)
		fmt.Fprint(w, strings.Repeat("x", 1000))
	}))
	t.Cleanup(server.Close)
	p, err := New(server.Listener.Addr().String(), HTTP1Response)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
	return p, "http://" + p.Addr(), done
}

// ask makes one request on a connection of its own.
func ask(url string, timeout time.Duration) (int, error) {
	client := &http.Client{Timeout: timeout, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get(url)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return len(body), err
}

func TestPass(t *testing.T) {
	_, url, done := start(t)
	if n, err := ask(url, patience); n != 1000 || err != nil || done.Load() != 1 {
		t.Errorf("%d bytes, %v, %d requests", n, err, done.Load())
	}
}

func TestCutEndsPresentAndNewConnections(t *testing.T) {
	p, url, done := start(t)
	conn, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	p.Set(Fault{Mode: Cut})
	if _, err := io.ReadAll(conn); err == nil {
		t.Error("the present connection ended without a reset")
	}
	if _, err := ask(url, patience); err == nil || done.Load() != 1 {
		t.Errorf("%v, %d requests", err, done.Load())
	}
	p.Set(Fault{Mode: Pass})
	if _, err := ask(url, patience); err != nil {
		t.Error(err)
	}
}

func TestBlackHoleForwardsNothingUntilItEnds(t *testing.T) {
	p, url, done := start(t)
	p.Set(Fault{Mode: BlackHole})
	var timeout net.Error
	if _, err := ask(url, 200*time.Millisecond); !errors.As(err, &timeout) || !timeout.Timeout() || done.Load() != 0 {
		t.Errorf("%v, %d requests", err, done.Load())
	}
	answered := make(chan error, 1)
	go func() {
		_, err := ask(url, patience)
		answered <- err
	}()
	p.Set(Fault{Mode: Pass})
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

func TestNewConnectionsAreRefused(t *testing.T) {
	p, url, _ := start(t)
	kept, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	get := func() (int, error) {
		if err := kept.SetDeadline(time.Now().Add(patience)); err != nil {
			return 0, err
		}
		if _, err := fmt.Fprint(kept, "GET / HTTP/1.1\r\nHost: here\r\n\r\n"); err != nil {
			return 0, err
		}
		response, err := http.ReadResponse(bufio.NewReader(kept), nil)
		if err != nil {
			return 0, err
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		return len(body), err
	}
	if _, err := get(); err != nil { // it is there
		t.Fatal(err)
	}
	p.Set(Fault{Mode: Pass, Refuse: true})
	if _, err := ask(url, patience); err == nil || p.Hits()[Refused] != 1 {
		t.Errorf("a new connection: %v, refused %v", err, p.Hits())
	}
	if n, err := get(); err != nil || n != 1000 {
		t.Errorf("one that there was: %d bytes, %v", n, err)
	}
}

func TestSlow(t *testing.T) {
	p, url, _ := start(t)
	p.Set(Fault{Mode: Slow, Delay: 50 * time.Millisecond})
	began := time.Now()
	if _, err := ask(url, patience); err != nil || time.Since(began) < 100*time.Millisecond {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}

func TestSlowResponse(t *testing.T) {
	p, url, _ := start(t)
	p.Set(Fault{Mode: SlowResponse, Delay: 100 * time.Millisecond})
	began := time.Now()
	if _, err := ask(url, patience); err != nil || time.Since(began) < 100*time.Millisecond {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}

func TestLoseResponse(t *testing.T) {
	p, url, done := start(t)
	p.Set(Fault{Mode: LoseResponse, Every: 2})
	for i, lost := range []bool{false, true, false, true} {
		if _, err := ask(url, patience); (err != nil) != lost {
			t.Errorf("request %d: %v", i, err)
		}
	}
	if hits := p.Hits(); done.Load() != 4 || len(hits) != 1 || hits["GET"] != 2 {
		t.Errorf("%d requests were done and the responses %v lost, want 4 and 2 of GET", done.Load(), hits)
	}
}

func TestResetResponse(t *testing.T) {
	p, url, done := start(t)
	p.Set(Fault{Mode: ResetResponse, Every: 1})
	if n, err := ask(url, patience); err == nil || done.Load() != 1 {
		t.Errorf("%d bytes, %v, %d requests", n, err, done.Load())
	}
}

func TestResponsesAreFound(t *testing.T) {
	for _, test := range []struct {
		name string
		find Response
		data string
		want int
	}{
		{"http", HTTP1Response, "HTTP/1.1 200 OK\r\n", 0},
		{"http body", HTTP1Response, "xxx", -1},
		{"http2 settings and headers", HTTP2Response, "\x00\x00\x00\x04\x01\x00\x00\x00\x00" + "\x00\x00\x01\x01\x04\x00\x00\x00\x01x", 9},
		{"http2 ping", HTTP2Response, "\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678", -1},
		{"postgres commit", PostgresResponse, "C\x00\x00\x00\x0bCOMMIT\x00Z\x00\x00\x00\x05I", 0},
		{"postgres begin", PostgresResponse, "C\x00\x00\x00\x0aBEGIN\x00Z\x00\x00\x00\x05T", -1},
		{"nats message", NATSResponse, "MSG _INBOX.1 1 2\r\nOK\r\n", 0},
		{"nats message behind another line", NATSResponse, "PONG\r\nHMSG _INBOX.1 1 2\r\nOK\r\n", 6},
		{"nats pong", NATSResponse, "PONG\r\n", -1},
	} {
		if got := test.find([]byte(test.data)); got != test.want {
			t.Errorf("%s: found at %d, want %d", test.name, got, test.want)
		}
	}
}

func TestResponsesAreDescribed(t *testing.T) {
	for _, test := range []struct{ name, asked, data, want string }{
		{"http", "PUT", "HTTP/1.1 200 OK\r\n", "PUT"},
		{"postgres commit", "", "C\x00\x00\x00\x0bCOMMIT\x00Z\x00\x00\x00\x05I", "COMMIT"},
		{"postgres select", "", "C\x00\x00\x00\x0dSELECT 2\x00Z", "SELECT"},
		{"nats stored", "", "MSG _INBOX.1 1 27\r\n{\"stream\":\"EVENTS\", \"seq\":1}\r\n", "stored in EVENTS"},
		{"nats api", "", "MSG _INBOX.1 1 2\r\n{\"type\":\"io.nats.jetstream.api.v1.stream_info_response\"}\r\n", "JetStream API"},
		{"nats message", "", "HMSG events.1 1 2\r\nx\r\n", "message"},
		{"http2", "", "\x00\x00\x01\x01\x04\x00\x00\x00\x01x", "gRPC"},
	} {
		if got := describe(test.asked, []byte(test.data)); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}
