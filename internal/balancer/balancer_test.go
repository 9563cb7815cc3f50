package balancer

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

const patience = time.Minute

// replica is a server that says its name and then what it is told, until the other side has
// finished; then it says goodbye.
type replica struct {
	name     string
	listener net.Listener
}

func mustReplica(t *testing.T, name string) *replica {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	r := &replica{name, listener}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.WriteString(conn, name+"\n")
				_, _ = io.Copy(conn, conn)
				_, _ = io.WriteString(conn, "goodbye")
			}()
		}
	}()
	return r
}

// names is what the resolver knows.
type names struct {
	mu       sync.Mutex
	replicas []*replica
}

func (n *names) set(replicas ...*replica) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.replicas = replicas
}

func (n *names) lookup(_ context.Context, host string) ([]string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if host != "ingest" || len(n.replicas) == 0 {
		return nil, errors.New("no such host")
	}
	var out []string
	for i := range n.replicas {
		out = append(out, n.replicas[len(n.replicas)-1-i].name)
	}
	return append(out, out[0]), nil // in any order, and maybe twice
}

func (n *names) dial(ctx context.Context, addr string) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range n.replicas {
		if r.name+":8080" == addr {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", r.listener.Addr().String())
		}
	}
	return nil, errors.New("no route to " + addr)
}

func mustBalance(t *testing.T, names *names, change func(*Config)) *Balancer {
	t.Helper()
	config := DefaultConfig()
	config.Listen, config.Target, config.Log = "127.0.0.1:0", "ingest:8080", slog.New(slog.NewTextHandler(t.Output(), nil))
	config.Lookup, config.Dial = names.lookup, names.dial
	if change != nil {
		change(&config)
	}
	b, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Error("it does not end")
		}
	})
	select {
	case <-b.Ready():
	case err := <-ended:
		t.Fatal(err)
	}
	return b
}

func mustConnect(t *testing.T, b *Balancer) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn)
}

// ask says something over a connection of its own and returns the name and all else that comes.
func ask(t *testing.T, b *Balancer, words string) (name, rest string) {
	t.Helper()
	conn := mustConnect(t, b)
	if _, err := io.WriteString(conn, words); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	name, rest, _ = strings.Cut(string(all), "\n")
	return name, rest
}

func TestConnectionsAreSpread(t *testing.T) {
	one, two, three := mustReplica(t, "10.0.0.1"), mustReplica(t, "10.0.0.2"), mustReplica(t, "10.0.0.3")
	known := &names{}
	known.set(one, two)
	b := mustBalance(t, known, nil)
	count := func(n int) map[string]int {
		out := map[string]int{}
		for range n {
			name, rest := ask(t, b, "hello")
			out[name]++
			// What comes after the half-close came through too.
			if rest != "hellogoodbye" {
				t.Errorf("%s answers %q", name, rest)
			}
		}
		return out
	}
	if got := count(10); got[one.name] != 5 || got[two.name] != 5 {
		t.Errorf("%v", got)
	}
	known.set(one, two, three) // another one was started
	if got := count(9); got[one.name] != 3 || got[two.name] != 3 || got[three.name] != 3 {
		t.Errorf("with a third: %v", got)
	}
	_ = one.listener.Close() // and one was killed, and is not forgotten yet
	if got := count(9); got[one.name] != 0 || got[two.name] == 0 || got[three.name] == 0 {
		t.Errorf("without the first: %v", got)
	}
}

func TestNobodyThere(t *testing.T) {
	known := &names{}
	b := mustBalance(t, known, nil)
	if name, rest := ask(t, b, ""); name+rest != "" {
		t.Errorf("somebody answers: %q", name+rest)
	}
	gone := mustReplica(t, "10.0.0.1")
	_ = gone.listener.Close()
	known.set(gone)
	if name, rest := ask(t, b, ""); name+rest != "" {
		t.Errorf("somebody answers: %q", name+rest)
	}
	back := mustReplica(t, "10.0.0.1")
	known.set(back)
	if name, _ := ask(t, b, ""); name != back.name {
		t.Errorf("%q answers", name)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	known := &names{}
	known.set(mustReplica(t, "10.0.0.1"))
	b := mustBalance(t, known, func(c *Config) { c.MaxConns = 1 })
	first := mustConnect(t, b)
	name := make([]byte, 8)
	if _, err := io.ReadFull(first, name); err != nil {
		t.Fatal(err)
	}
	second := mustConnect(t, b) // the kernel takes it, nobody else
	if err := second.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := second.Read(name); err == nil {
		t.Errorf("the second is served beside the first: %q", name[:n])
	}
	_ = first.Close()
	if err := second.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(second, name); err != nil {
		t.Errorf("the second is not served after the first: %v", err)
	}
}

func TestStopClosesConnections(t *testing.T) {
	known := &names{}
	known.set(mustReplica(t, "10.0.0.1"))
	config := DefaultConfig()
	config.Listen, config.Target, config.Log = "127.0.0.1:0", "ingest:8080", slog.New(slog.DiscardHandler)
	config.Lookup, config.Dial = known.lookup, known.dial
	b, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	<-b.Ready()
	conn := mustConnect(t, b)
	if _, err := io.ReadFull(conn, make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.ReadAll(conn); errors.Is(err, context.DeadlineExceeded) {
		t.Error("the connection stays open")
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("it does not end")
	}
}

func TestValidate(t *testing.T) {
	good := DefaultConfig()
	good.Listen, good.Target, good.Log = ":8080", "ingest:8080", slog.New(slog.DiscardHandler)
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(*Config){
		"listen":      func(c *Config) { c.Listen = "8080" },
		"target":      func(c *Config) { c.Target = "ingest" },
		"connections": func(c *Config) { c.MaxConns = 0 },
		"Log":         func(c *Config) { c.Log = nil },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
		if _, err := New(c); err == nil {
			t.Errorf("%s: New takes it", want)
		}
	}
}

func TestAddressThatIsTaken(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	config := DefaultConfig()
	config.Listen, config.Target, config.Log = taken.Addr().String(), "ingest:8080", slog.New(slog.DiscardHandler)
	b, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Run(t.Context()); err == nil || !strings.Contains(err.Error(), config.Listen) {
		t.Error(err)
	}
}
