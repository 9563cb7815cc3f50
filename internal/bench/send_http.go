package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"time"
)

// httpSender makes a request in binary mode of each call, on connections that stay open. A
// connection is used by one call at a time.
type httpSender struct {
	addr string
	free chan *httpConn
}

type httpConn struct {
	net.Conn // nil: to be opened
	in       *bufio.Reader
	out      []byte
}

func newHTTPSender(target *url.URL, connections int) *httpSender {
	s := &httpSender{addr: target.Host, free: make(chan *httpConn, connections)}
	for range connections {
		s.free <- &httpConn{}
	}
	return s
}

// close ends the connections. No call is under way.
func (s *httpSender) close() error {
	var errs []error
	for range cap(s.free) {
		if conn := <-s.free; conn.Conn != nil {
			errs = append(errs, conn.Close())
		}
	}
	return errors.Join(errs...)
}

func (s *httpSender) send(ctx context.Context, c *call) outcome {
	conn := <-s.free
	defer func() { s.free <- conn }()
	if conn.Conn == nil {
		var dialer net.Dialer
		opened, err := dialer.DialContext(ctx, "tcp", s.addr)
		if err != nil {
			return outcome{err: fmt.Errorf("connect: %w", err)}
		}
		conn.Conn, conn.in = opened, bufio.NewReaderSize(opened, 4<<10)
	}
	o := conn.exchange(c)
	if o.unknown {
		_ = conn.Close() // what it still holds is of no use
		conn.Conn = nil
	}
	return o
}

func (c *httpConn) exchange(request *call) outcome {
	size := len(request.message.wire)
	if cap(c.out) < size {
		c.out = make([]byte, size)
	}
	c.out = c.out[:size]
	request.message.fill(c.out, request.ledger, request.first)
	_ = c.SetDeadline(time.Now().Add(callTimeout)) // a closed connection tells below
	if _, err := c.Write(c.out); err != nil {
		return outcome{err: fmt.Errorf("send: %w", err), unknown: true}
	}
	code, err := c.readAnswer()
	switch {
	case err != nil:
		return outcome{err: fmt.Errorf("read the answer: %w", err), unknown: true}
	case code/100 == 2:
		return outcome{}
	default:
		return outcome{err: fmt.Errorf("HTTP status %d", code), unknown: code/100 == 5}
	}
}

// readAnswer returns the status of an answer and passes over the rest of it.
func (c *httpConn) readAnswer() (code int, err error) {
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.1 ")) {
		return 0, badAnswer("it begins with %q", line).err
	}
	if code, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, badAnswer("it begins with %q", line).err
	}
	length := 0
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		if bytes.EqualFold(name, []byte("Content-Length")) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return 0, badAnswer("its length is %q", value).err
			}
		}
	}
	_, err = c.in.Discard(length)
	return code, err
}
