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

	Name        string   `env:"-" help:"Name of the server, unique in its cluster."`
	ClusterPort int      `name:"cluster-port" env:"-" help:"Port of 127.0.0.1 for the other servers of a cluster."`
	Route       []string `env:"-" placeholder:"HOST:PORT" help:"Another server of the cluster; may be repeated."`
}

// Run serves until ctx ends.
func (c *natsServerCommand) Run(ctx context.Context, con *console) error {
	o := devstack.DefaultNATSOptions(c.Dir)
	o.Port, o.HTTPPort = c.Port, c.HTTPPort
	o.ClusterPort, o.Routes = c.ClusterPort, c.Route
	if c.Name != "" {
		o.ServerName = c.Name
	}
	o.Logger = slog.New(slog.NewTextHandler(con.err, nil))
	return devstack.RunNATSServer(ctx, o)
}
