// Package endpointtest runs receiving endpoints for tests.
package endpointtest

import (
	"context"
	"log/slog"
	"sync"
	"testing"

	"github.com/waybillhq/waybill/internal/endpoint"
)

// Start runs an endpoint that logs nothing, until the test ends or stop is called, and returns when it listens. change,
// which may be nil, changes its settings.
func Start(t testing.TB, change func(*endpoint.Config)) (e *endpoint.Endpoint, stop func()) {
	t.Helper()
	config := endpoint.DefaultConfig()
	config.Log = slog.New(slog.DiscardHandler)
	if change != nil {
		change(&config)
	}
	e, err := endpoint.New(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("endpoint: %v", err)
		}
	})
	select {
	case <-e.Ready():
	case err := <-ended:
		cancel()
		t.Fatalf("the endpoint does not run: %v", err)
	}
	t.Cleanup(stop)
	return e, stop
}
