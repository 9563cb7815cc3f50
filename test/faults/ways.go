package main

import (
	"context"
	"strings"
	"sync"

	"github.com/waybillhq/waybill/test/faults/proxy"
)

// ways are the proxies between the processes and the servers, one for each pair.
type ways struct {
	mu      sync.Mutex // guards what follows
	proxies map[[2]string]*proxy.Proxy
	added   chan *proxy.Proxy
}

// maxWays is above the number of pairs.
const maxWays = 64

func newWays() *ways {
	return &ways{proxies: map[[2]string]*proxy.Proxy{}, added: make(chan *proxy.Proxy, maxWays)}
}

// via is devrun's Config.Via. A process is given a way only to what it uses.
func (w *ways) via(process, server, addr string) (string, error) {
	find := map[string]proxy.Response{
		"postgres": proxy.PostgresResponse, "nats": proxy.NATSResponse,
		"endpoint": proxy.HTTP2Response, "s3": proxy.HTTP1Response,
		// Those of an ingest itself, to which the producers come.
		"http": proxy.HTTP1Response, "grpc": proxy.HTTP2Response,
	}
	kind, _, _ := strings.Cut(server, "-") // of a cluster
	p, err := proxy.New(addr, find[kind])
	if err != nil {
		return "", err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.proxies[[2]string{process, server}] = p
	w.added <- p
	return p.Addr(), nil
}

// run forwards until ctx ends.
func (w *ways) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		select {
		case p := <-w.added:
			// It fails only where the machine has no more connections to give, and then
			// everything does.
			wg.Go(func() { _ = p.Run(ctx) })
		case <-ctx.Done():
			return
		}
	}
}

// to returns the way of a process to a server, or those to all servers of a cluster.
func (w *ways) to(process, server string) []*proxy.Proxy {
	return w.where(func(from, to string) bool {
		kind, _, _ := strings.Cut(to, "-")
		return from == process && (to == server || kind == server)
	})
}

func (w *ways) where(wanted func(from, to string) bool) []*proxy.Proxy {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []*proxy.Proxy
	for way, p := range w.proxies {
		if wanted(way[0], way[1]) {
			all = append(all, p)
		}
	}
	return all
}
