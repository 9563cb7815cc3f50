package proxy

import (
	"bytes"
	"context"
	"net"
	"sync/atomic"
)

// chunk is the most that is forwarded at once, bytes.
const chunk = 32 << 10

// link is one connection of a client and the one to the server that belongs to it.
type link struct {
	proxy          *Proxy
	client, server *net.TCPConn
	asked          atomic.Value // string: the method of the newest HTTP request
}

// reset ends both sides at once; what is under way is thrown away.
func (l *link) reset() {
	_ = l.client.SetLinger(0) // it may be closed already
	l.close()
}

func (l *link) close() {
	_ = l.client.Close() // it may be closed already
	if l.server != nil {
		_ = l.server.Close()
	}
}

// pump forwards one direction until its end, and then ends the whole connection. response
// is nil for requests.
func (l *link) pump(ctx context.Context, to, from *net.TCPConn, response Response) {
	defer l.close()
	buf := make([]byte, chunk)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			data := buf[:n]
			if response == nil {
				l.note(data)
			}
			if l.proxy.pass(ctx) != nil || l.holdBack(ctx, data, response) != nil {
				return
			}
			data, hit := l.strike(data, response)
			if len(data) > 0 {
				if _, err := to.Write(data); err != nil {
					return
				}
			}
			if hit {
				l.reset()
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// holdBack waits before a response begins, where responses are slow.
func (l *link) holdBack(ctx context.Context, data []byte, response Response) error {
	fault, _ := l.proxy.now()
	if response == nil || fault.Mode != SlowResponse || response(data) < 0 {
		return nil
	}
	return wait(ctx, fault.Delay)
}

// note remembers what is asked.
func (l *link) note(data []byte) {
	if m := method(data); m != "" {
		l.asked.Store(m)
	}
}

// describe says what a response is the answer to.
func (l *link) describe(response []byte) func() string {
	return func() string {
		asked, _ := l.asked.Load().(string)
		return describe(asked, response)
	}
}

// strike says how much of data goes on, and whether the connection ends after it.
func (l *link) strike(data []byte, response Response) (rest []byte, hit bool) {
	fault, _ := l.proxy.now()
	if response == nil || (fault.Mode != ResetResponse && fault.Mode != LoseResponse) {
		return data, false
	}
	at := response(data)
	if at < 0 || !l.proxy.hit(l.describe(data[at:])) {
		return data, false
	}
	if fault.Mode == ResetResponse {
		at += (len(data) - at) / 2
	}
	return data[:at], true
}

// Response finds where in a piece of data from a server a response begins; -1: nowhere. A
// beginning that is split over two pieces may be missed.
type Response func(data []byte) int

// HTTP1Response finds status lines.
func HTTP1Response(data []byte) int { return bytes.Index(data, []byte("HTTP/1.1 ")) }

// HTTP2Response finds HEADERS frames, with which the responses of gRPC begin.
func HTTP2Response(data []byte) int {
	for at := 0; at+9 <= len(data); {
		length := int(data[at])<<16 | int(data[at+1])<<8 | int(data[at+2])
		if data[at+3] == 1 && data[at+5] == 0 {
			return at
		}
		at += 9 + length
	}
	return -1
}

// PostgresResponse finds the word that a statement or a commit is done.
func PostgresResponse(data []byte) int {
	for _, tag := range []string{"COMMIT", "INSERT", "SELECT", "UPDATE", "DELETE"} {
		at := bytes.Index(data, []byte(tag))
		if at >= 5 && data[at-5] == 'C' && data[at-4] == 0 && data[at-3] == 0 && data[at-2] == 0 {
			return at - 5
		}
	}
	return -1
}

// NATSResponse finds messages, which is what answers are.
func NATSResponse(data []byte) int {
	for _, start := range []string{"MSG ", "HMSG "} {
		if bytes.HasPrefix(data, []byte(start)) {
			return 0
		}
		if at := bytes.Index(data, []byte("\n"+start)); at >= 0 {
			return at + 1
		}
	}
	return -1
}
