package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"time"

	"github.com/waybillhq/waybill/internal/endpoint"
)

// endpointCommand runs a receiving ChipIngress endpoint. What it records is in memory.
type endpointCommand struct {
	Addr       string        `env:"WAYBILL_ENDPOINT_ADDR" want:"address" default:"${endpoint_addr}" help:"Address of the gRPC service chipingress.pb.ChipIngress."`
	AdminAddr  string        `env:"WAYBILL_ENDPOINT_ADMIN_ADDR,WAYBILL_ADMIN_ADDR" want:"address" default:"${endpoint_admin_addr}" help:"Address of /livez, /readyz, /stats, /events and /behaviour."`
	Delay      time.Duration `env:"WAYBILL_ENDPOINT_DELAY" want:"not-negative" default:"0s" help:"How long each call takes. PUT /behaviour changes it, and more."`
	MaxRecords int           `env:"WAYBILL_ENDPOINT_MAX_RECORDS" want:"positive" default:"${endpoint_max_records}" help:"How many of the newest events can be read back."`
	Records    string        `name:"records-file" env:"WAYBILL_ENDPOINT_RECORDS_FILE" type:"path" help:"File that every event taken is appended to, a JSON object a line; it outlives the process. Empty: none."`
	LogFormat  string        `enum:"json,text" default:"json" help:"Form of the log."`
}

// Run serves until ctx ends.
func (c *endpointCommand) Run(ctx context.Context, con *console) error {
	config := endpoint.DefaultConfig()
	config.Addr, config.AdminAddr, config.MaxRecords = c.Addr, c.AdminAddr, c.MaxRecords
	config.RecordsPath = c.Records
	config.Behaviour.DelayMS = int(c.Delay.Milliseconds())
	config.Log = slog.New(slog.NewJSONHandler(con.err, nil))
	if c.LogFormat == "text" {
		config.Log = slog.New(slog.NewTextHandler(con.err, nil))
	}
	e, err := endpoint.New(config)
	if err != nil {
		return err
	}
	err = e.Run(ctx)
	if file := (*fs.PathError)(nil); errors.As(err, &file) {
		err = fmt.Errorf("--records-file (WAYBILL_ENDPOINT_RECORDS_FILE): %w; name a file that this user may write", err)
	}
	if listen := (*net.OpError)(nil); errors.As(err, &listen) && listen.Op == "listen" {
		err = fmt.Errorf("%w; give it other addresses with --addr and --admin-addr (WAYBILL_ENDPOINT_ADDR, WAYBILL_ENDPOINT_ADMIN_ADDR)", err)
	}
	return err
}
