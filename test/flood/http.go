package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// httpSender sends each call on a connection of its own, half of them as JSON and half as
// protobuf.
type httpSender struct {
	addr string
	json bool
}

func openHTTP(sys *system, i int) (sender, error) {
	return &httpSender{addr: strings.TrimPrefix(sys.stack.HTTP[0], "http://"), json: i%2 == 0}, nil
}

func (s *httpSender) close() error { return nil }

// callTimeout is more than any call may take.
const callTimeout = 2 * time.Minute

func (s *httpSender) send(ctx context.Context, source, id string) outcome {
	body, contentType := protobufCall(source, id), "application/cloudevents-batch+protobuf"
	if s.json {
		body, contentType = jsonCall(source, id), "application/cloudevents-batch+json"
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", s.addr)
	if err != nil {
		return outcome{err: fmt.Errorf("connect: %w", err)}
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	_ = conn.SetDeadline(time.Now().Add(callTimeout))
	head := fmt.Sprintf("POST /v1/events HTTP/1.1\r\nHost: flood\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", contentType, body.size())
	pieces := net.Buffers(append(call{[]byte(head)}, body...))
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = pieces.WriteTo(conn) // a refusal comes before all was sent; the answer tells
	}()
	defer func() { _ = conn.Close(); <-sent }()
	response, err := http.ReadResponse(bufio.NewReaderSize(conn, 1<<10), nil)
	if err != nil {
		return outcome{err: fmt.Errorf("no answer: %w", err)}
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 4<<10))
	if err != nil {
		return outcome{err: fmt.Errorf("half an answer: %w", err)}
	}
	return outcomeOfHTTP(response, string(text))
}

func outcomeOfHTTP(response *http.Response, text string) outcome {
	after, err := strconv.Atoi(response.Header.Get("Retry-After"))
	switch {
	case response.StatusCode == http.StatusOK:
		return outcome{accepted: true}
	case response.StatusCode == http.StatusTooManyRequests && err == nil && after > 0:
		return outcome{refused: true, after: time.Duration(after) * time.Second}
	}
	return outcome{err: fmt.Errorf("%s: %s", response.Status, text)}
}
