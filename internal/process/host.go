package process

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/alecthomas/kong"

	"github.com/waybillhq/waybill/pipeline"
)

// Host is what a program sets that runs a process inside itself. The command line has none of it.
type Host struct {
	// Log receives what the process would write to standard error; nil: that.
	Log *slog.Logger
	// Getenv is asked for OpenTelemetry's variables; nil: the environment.
	Getenv func(name string) string
	// Running, which may be nil, is told once when the process begins its work.
	Running func(Running)
	// Forwarder and Janitor, which may be nil, change what there is no flag for.
	Forwarder func(*pipeline.ForwarderConfig)
	Janitor   func(*pipeline.JanitorConfig)
}

// Running is a process that has begun its work.
type Running struct {
	// AdminAddr is where it serves its health and metrics, HTTPAddr and GRPCAddr where an ingest takes
	// events: host:port each.
	AdminAddr, HTTPAddr, GRPCAddr string
	// Readiness is what /readyz would say.
	Readiness func() pipeline.Readiness
}

// Configure sets a process's settings as its command line would, and without the environment.
func Configure(config any, args ...string) error {
	parser, err := kong.New(config, kong.Name("waybill"), Defaults())
	if err != nil {
		return fmt.Errorf("read the settings: %w", err)
	}
	for _, flag := range parser.Model.Flags {
		flag.Tag.Envs = nil
	}
	_, err = parser.Parse(args)
	return err
}

// log is the process's logger.
func (i Identity) log(l Logging, kind string) *slog.Logger {
	if i.Host != nil && i.Host.Log != nil {
		return i.Host.Log.With("process", kind)
	}
	return l.logger(os.Stderr, kind)
}

func (i Identity) getenv(name string) string {
	if i.Host != nil && i.Host.Getenv != nil {
		return i.Host.Getenv(name)
	}
	return os.Getenv(name)
}

// running tells the host, if there is one.
func (a *admin) running(i Identity, r Running) {
	if i.Host != nil && i.Host.Running != nil {
		r.AdminAddr, r.Readiness = a.listener.Addr().String(), a.checks.Readiness
		i.Host.Running(r)
	}
}
