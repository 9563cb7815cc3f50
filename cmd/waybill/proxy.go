package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/waybillhq/waybill/internal/balancer"
)

// proxyCommand spreads connections over the containers that have one name. compose.yaml runs it.
type proxyCommand struct {
	Routes []string `arg:"" placeholder:"LISTEN=TARGET" help:"Where to listen and where that leads, such as :8080=ingest:8080."`
}

// Run serves until ctx ends.
func (c *proxyCommand) Run(ctx context.Context, con *console) error {
	log := slog.New(slog.NewJSONHandler(con.err, nil)).With("process", "proxy")
	var all []*balancer.Balancer
	for _, route := range c.Routes {
		config := balancer.DefaultConfig()
		config.Listen, config.Target, _ = strings.Cut(route, "=")
		config.Log = log
		b, err := balancer.New(config)
		if err != nil {
			return fmt.Errorf("%s: %w", route, err)
		}
		all = append(all, b)
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, b := range all {
		group.Go(func() error { return b.Run(ctx) })
	}
	return group.Wait()
}
