package devrun

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
)

// Ports are taken from below those that the kernel gives to outgoing connections, so that
// none of these is in the way when a process is started again.
const (
	lowestPort  = 20000
	highestPort = 32000
	portTries   = 1000
)

// handedOut are the ports that any stack of this process was given: one that is not listened
// on yet looks free to the next.
var handedOut = struct {
	sync.Mutex
	ports map[int]bool
}{ports: map[int]bool{}}

// claim reports whether nobody in this process had the port before.
func claim(port int) bool {
	handedOut.Lock()
	defer handedOut.Unlock()
	if handedOut.ports[port] {
		return false
	}
	handedOut.ports[port] = true
	return true
}

// ports gives each part of a stack a port of 127.0.0.1 that stays the same over starts, as
// long as nobody else takes it.
type ports struct {
	path  string
	known map[string]int
	given map[int]bool // in this start
}

func loadPorts(path string) (*ports, error) {
	p := &ports{path: path, known: map[string]int{}, given: map[int]bool{}}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the ports of the last start: %w", err)
	}
	if err := json.Unmarshal(data, &p.known); err != nil {
		return nil, fmt.Errorf("%s: %w; delete the file, and new ports are chosen", path, err)
	}
	return p, nil
}

// port returns the port of the named part.
func (p *ports) port(name string) (int, error) {
	if port := p.known[name]; port != 0 && !p.given[port] && isFree("127.0.0.1", port) {
		p.given[port] = true
		return port, nil
	}
	for range portTries {
		port := lowestPort + rand.IntN(highestPort-lowestPort)
		if isFree("127.0.0.1", port) && claim(port) {
			p.known[name], p.given[port] = port, true
			return port, nil
		}
	}
	return 0, fmt.Errorf("no free port for %s between %d and %d", name, lowestPort, highestPort)
}

// addr is port as host:port.
func (p *ports) addr(name string) (string, error) {
	port, err := p.port(name)
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), err
}

func (p *ports) save() error {
	data, err := json.MarshalIndent(p.known, "", "  ")
	if err != nil {
		return fmt.Errorf("remember the ports: %w", err)
	}
	if err := os.WriteFile(p.path, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("remember the ports: %w", err)
	}
	return nil
}

func isFree(host string, port int) bool {
	l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return false
	}
	return l.Close() == nil
}

// mustBeFree says clearly that an address was chosen which somebody else has.
func mustBeFree(flag, addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("%s %s cannot be listened on (%w): end what has it, choose another address with %s, or let free ports be chosen with --ports=free", flag, addr, err, flag)
	}
	return l.Close()
}
