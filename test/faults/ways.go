package main

import (
	"context"
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
	p, err := proxy.New(addr, find[server])
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

func (w *ways) to(process, server string) *proxy.Proxy {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.proxies[[2]string{process, server}]
}
