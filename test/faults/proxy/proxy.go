// Package proxy stands between two programs on this machine and breaks their connection in
// the ways that networks do.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"sync"
	"time"
)

// Mode is what a Proxy does with its connections.
type Mode int

const (
	// Pass forwards everything.
	Pass Mode = iota
	// Cut ends all connections with a reset, new ones as well.
	Cut
	// BlackHole takes connections and forwards nothing; what is on the way waits.
	BlackHole
	// Slow holds each piece of data back for Fault.Delay.
	Slow
	// SlowResponse holds each response back for Fault.Delay, once.
	SlowResponse
	// ResetResponse ends a connection with a reset in the middle of a response.
	ResetResponse
	// LoseResponse lets the server do what was asked, and ends the connection with a
	// reset instead of its response.
	LoseResponse
)

// Fault is a mode and its parameters.
type Fault struct {
	Mode  Mode
	Delay time.Duration // of Slow and SlowResponse
	Every int           // of the modes of responses: which of them is hit; at least 1
	// Refuse ends new connections with a reset, whatever becomes of those that there are.
	Refuse bool
}

// Refused is how Hits calls a connection that Fault.Refuse ended.
const Refused = "a new connection"

// Proxy forwards connections to one address. It is safe for concurrent use.
type Proxy struct {
	target   string
	response Response
	listener net.Listener

	mu        sync.Mutex // guards what follows
	fault     Fault
	changed   chan struct{} // closed when fault changes
	responses int
	links     map[*link]struct{}
	hits      map[string]int // by what was lost or cut off
}

// New returns a proxy that listens on a free port of the loopback interface and forwards
// nothing until Run. response finds the beginnings of responses.
func New(target string, response Response) (*Proxy, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("proxy to %s: %w", target, err)
	}
	return &Proxy{
		target: target, response: response, listener: listener,
		changed: make(chan struct{}), links: map[*link]struct{}{}, hits: map[string]int{},
	}, nil
}

// Addr is where it listens.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Set changes what is done with present and new connections.
func (p *Proxy) Set(fault Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = fault
	close(p.changed)
	p.changed = make(chan struct{})
	if fault.Mode == Cut {
		for l := range p.links {
			l.reset()
		}
	}
}

// Hits is how many responses were lost or cut off, by what they were the answer to: a method
// of HTTP, the word for a statement of Postgres, a stream of NATS, and so on; or Refused.
func (p *Proxy) Hits() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.hits)
}

func (p *Proxy) now() (Fault, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fault, p.changed
}

// hit reports whether the response that begins now is one of those to be hit; what says what it
// is.
func (p *Proxy) hit(what func() string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.responses++
	if p.responses%max(p.fault.Every, 1) != 0 {
		return false
	}
	p.hits[what()]++
	return true
}

// refuses reports, and counts, that a new connection is refused.
func (p *Proxy) refuses() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fault.Refuse {
		p.hits[Refused]++
	}
	return p.fault.Refuse
}

// Run forwards until ctx ends, and then ends all connections.
func (p *Proxy) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = p.listener.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := p.listener.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("proxy to %s: %w", p.target, err)
		}
		wg.Go(func() { p.serve(ctx, conn.(*net.TCPConn)) })
	}
}

// serve forwards one connection to its end.
func (p *Proxy) serve(ctx context.Context, client *net.TCPConn) {
	l := &link{proxy: p, client: client}
	defer l.close()
	if p.refuses() || p.pass(ctx) != nil {
		l.reset()
		return
	}
	server, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.target)
	if err != nil {
		l.reset()
		return
	}
	l.server = server.(*net.TCPConn)
	if !p.add(l) {
		return
	}
	defer p.remove(l)
	stop := context.AfterFunc(ctx, l.reset)
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { l.pump(ctx, l.server, l.client, nil) })
	wg.Go(func() { l.pump(ctx, l.client, l.server, p.response) })
	wg.Wait()
}

var errCut = errors.New("the connection is cut")

// pass waits until data may go on.
func (p *Proxy) pass(ctx context.Context) error {
	for {
		fault, changed := p.now()
		switch fault.Mode {
		case Cut:
			return errCut
		case BlackHole:
			select {
			case <-changed:
			case <-ctx.Done():
				return ctx.Err()
			}
		case Slow:
			return wait(ctx, fault.Delay)
		default:
			return nil
		}
	}
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// add reports false where the connection was cut meanwhile.
func (p *Proxy) add(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fault.Mode == Cut {
		l.reset()
		return false
	}
	p.links[l] = struct{}{}
	return true
}

func (p *Proxy) remove(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.links, l)
}
