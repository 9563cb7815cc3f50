// Package balancer spreads TCP connections over all addresses that a name has, one after another.
// It stands before the ingests of compose.yaml: of several containers only one could have a port
// of the host.
//
// A connection stays where it is. So the events that a producer sends over one connection come in
// through one ingest, and keep their order.
package balancer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// dialTimeout bounds the try of one address: a container that has gone may not even refuse.
	dialTimeout = time.Second
	// acceptPause is how long nothing is accepted after the operating system has failed to.
	acceptPause = 100 * time.Millisecond
)

// keepAlive finds out within some ten seconds that a container has gone without a word.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3}

// Config says where a Balancer listens and where it leads. Start from DefaultConfig.
type Config struct {
	// Listen is host:port, or :port for all addresses of this machine.
	Listen string
	// Target is host:port. Each address of the host gets connections.
	Target string
	// MaxConns bounds the connections; beyond it the next one waits for the end of another.
	MaxConns int
	// Lookup returns the addresses of a host. It is called for each connection.
	Lookup func(ctx context.Context, host string) ([]string, error)
	// Dial connects to host:port.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Log hears of connections that lead nowhere.
	Log *slog.Logger
}

// DefaultConfig asks the machine's resolver. Listen, Target and Log are missing.
func DefaultConfig() Config {
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAliveConfig: keepAlive}
	return Config{
		MaxConns: 4096,
		Lookup:   net.DefaultResolver.LookupHost,
		Dial:     func(ctx context.Context, addr string) (net.Conn, error) { return dialer.DialContext(ctx, "tcp", addr) },
	}
}

// Validate names the first setting that cannot work.
func (c Config) Validate() error {
	for _, addr := range []struct{ name, value string }{{"listen", c.Listen}, {"target", c.Target}} {
		if _, port, err := net.SplitHostPort(addr.value); err != nil || port == "" {
			return fmt.Errorf("%s: %q; want host:port, such as ingest:8080", addr.name, addr.value)
		}
	}
	if c.MaxConns < 1 {
		return fmt.Errorf("connections: %d; want at least 1", c.MaxConns)
	}
	if c.Lookup == nil || c.Dial == nil || c.Log == nil {
		return errors.New("the field Lookup, Dial or Log is missing; start from DefaultConfig")
	}
	return nil
}

// Balancer accepts connections and leads each to the next address.
type Balancer struct {
	config     Config
	host, port string // of the target
	turn       atomic.Uint64
	ready      chan struct{} // closed when listener is set
	listener   net.Listener
}

// New returns a Balancer that does nothing until Run.
func New(config Config) (*Balancer, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(config.Target)
	if err != nil {
		return nil, err
	}
	return &Balancer{config: config, host: host, port: port, ready: make(chan struct{})}, nil
}

// Ready is closed when connections are accepted.
func (b *Balancer) Ready() <-chan struct{} { return b.ready }

// Addr is the address that is listened on, once Ready is closed.
func (b *Balancer) Addr() string { return b.listener.Addr().String() }

// Run accepts until ctx ends, and then closes every connection. It may be called once. An address
// that cannot be listened on is an error; the end of ctx is not.
func (b *Balancer) Run(ctx context.Context) error {
	listen := net.ListenConfig{KeepAliveConfig: keepAlive}
	listener, err := listen.Listen(ctx, "tcp", b.config.Listen)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", b.config.Listen, err)
	}
	b.listener = listener
	close(b.ready)
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() }) // Accept fails then
	defer stop()
	var conns sync.WaitGroup
	defer conns.Wait()
	room := make(chan struct{}, b.config.MaxConns)
	for {
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := listener.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = conn.Close()
			}
			return nil
		}
		if err != nil {
			b.config.Log.WarnContext(ctx, "a connection was not accepted", "error", err)
			time.Sleep(acceptPause)
			<-room
			continue
		}
		conns.Go(func() {
			defer func() { <-room }()
			b.serve(ctx, conn)
		})
	}
}

// serve leads a connection to an address, and closes it in the end.
func (b *Balancer) serve(ctx context.Context, conn net.Conn) {
	defer func() { _ = conn.Close() }()
	target, err := b.dial(ctx)
	if err != nil {
		b.config.Log.WarnContext(ctx, "a connection leads nowhere", "target", b.config.Target, "error", err)
		return
	}
	defer func() { _ = target.Close() }()
	stop := context.AfterFunc(ctx, func() { _, _ = conn.Close(), target.Close() })
	defer stop()
	var ways sync.WaitGroup
	ways.Go(func() { pass(target, conn) })
	ways.Go(func() { pass(conn, target) })
	ways.Wait()
}

// pass copies until the source has ended, and says so to the destination. After a failure both are
// of no use.
func pass(to, from net.Conn) {
	if _, err := io.Copy(to, from); err != nil {
		_, _ = to.Close(), from.Close()
		return
	}
	if half, ok := to.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		return
	}
	_ = to.Close()
}

// dial connects to the address whose turn it is, or else to the ones after it.
func (b *Balancer) dial(ctx context.Context) (net.Conn, error) {
	looking, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	addrs, err := b.config.Lookup(looking, b.host)
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", b.host, err)
	}
	slices.Sort(addrs) // resolvers shuffle
	addrs = slices.Compact(addrs)
	failures := []error{fmt.Errorf("none of %d addresses answers", len(addrs))}
	turn := b.turn.Add(1)
	for i := range addrs {
		addr := net.JoinHostPort(addrs[(turn+uint64(i))%uint64(len(addrs))], b.port)
		conn, err := b.config.Dial(ctx, addr)
		if err == nil {
			return conn, nil
		}
		failures = append(failures, err)
	}
	return nil, errors.Join(failures...)
}
