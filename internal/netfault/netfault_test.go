package netfault

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"testing"
	"time"
)

func TestReason(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	_ = l.Close()
	client := http.Client{Timeout: time.Minute}
	_, refused := client.Get("http://" + closed)
	for want, err := range map[string]error{
		"connection refused":           refused,
		"nosuch.invalid: no such host": fmt.Errorf("x: %w", &net.DNSError{Name: "nosuch.invalid", Err: "no such host", Server: "192.0.2.1:53"}),
		"no answer in time":            fmt.Errorf("x: %w", context.DeadlineExceeded),
		"some reason":                  &net.OpError{Op: "read", Err: errors.New("some reason")},
	} {
		if text, ok := Reason(err); !ok || text != want {
			t.Errorf("%v: %q, want %q", err, text, want)
		}
	}
	if text, _ := Reason(&net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}); text != "no answer in time" {
		t.Errorf("%q", text)
	}
	for message, want := range map[string]string{
		`connection error: desc = "transport: Error while dialing: dial tcp 127.0.0.1:1: connect: connection refused"`: "connection refused",
		"name resolver error: produced zero addresses":                                                                 "produced zero addresses",
		"the server is shutting down":                                                                                  "",
	} {
		if text, ok := Undialed(message); text != want || ok != (want != "") {
			t.Errorf("%s: %q, want %q", message, text, want)
		}
	}
	if text, ok := Mismatch("some other trouble"); ok {
		t.Errorf("%q", text)
	}
	if text, ok := Reason(errors.New("other")); ok {
		t.Errorf("%q", text)
	}
}
