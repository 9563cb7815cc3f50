package main

import (
	"context"
	"log/slog"

	"github.com/waybillhq/waybill/internal/devstack"
)

// natsServerCommand runs the nats-server of `waybill dev` as a process of its own.
type natsServerCommand struct {
	Dir      string `required:"" type:"path" env:"-" help:"Directory of JetStream's files."`
	Port     int    `required:"" env:"-" help:"Port of 127.0.0.1 for clients."`
	HTTPPort int    `name:"http-port" required:"" env:"-" help:"Port of 127.0.0.1 for nats-server's own monitoring."`
}

// Run serves until ctx ends.
func (c *natsServerCommand) Run(ctx context.Context, con *console) error {
	o := devstack.DefaultNATSOptions(c.Dir)
	o.Port, o.HTTPPort = c.Port, c.HTTPPort
	o.Logger = slog.New(slog.NewTextHandler(con.err, nil))
	return devstack.RunNATSServer(ctx, o)
}
