package bench

import (
	"errors"
	"fmt"
	"time"

	"github.com/waybillhq/waybill/internal/process"
)

// Config says what is measured and how. Start from DefaultConfig.
type Config struct {
	// Dir is for the reports. It is made.
	Dir string
	// Executable is the waybill binary, whose commands the processes are; Env is their
	// environment, as KEY=value.
	Executable string
	Env        []string
	// Command is the command line, for the report.
	Command []string
	// Given is an existing system to measure; nil: own ones are started.
	Given *Given
	// S3 is what the scenario s3 measures, with neither endpoint nor bucket an own server; S3Prices
	// are what it costs.
	S3       process.S3
	S3Prices S3Prices
	// Settings replace those of a scenario's stages.
	Settings Settings
	// KeepLogs copies the logs of the processes beside the reports.
	KeepLogs bool
	// Profile keeps a CPU profile of each of Waybill's processes during each window, beside the
	// reports.
	Profile bool
	// Say receives lines for people. Live, which may be nil, receives what is happening
	// right now, for a line that is rewritten.
	Say, Live func(string)
}

// Settings replace what a scenario says of its stages, where they are set.
type Settings struct {
	WarmUp, For         *time.Duration
	Bytes, Events, Keys *int
	Rate                *float64
	Callers             *int
	Runs                *int    // of scenarios that compare things in turn
	Part                *string // of scenarios of several parts: what the name of those that are wanted has in it
	Pending             *int    // rows or batches that scenarios of the tables begin with
	// Trace is the CSV file of trace-file, empty: a sample; Speed is how many times as fast it
	// is replayed.
	Trace string
	Speed *float64
}

// Given is an existing system. What is empty cannot be measured; see docs/benchmarks.md.
type Given struct {
	HTTPURL, GRPCAddr string
	DatabaseURL       string
	NATSURL           string
	// EndpointAddr is what to listen on for the forwarders, as host:port.
	EndpointAddr string
}

// DefaultConfig measures own systems. Dir, Executable and Say are missing.
func DefaultConfig() Config {
	return Config{S3: process.DefaultS3(), S3Prices: DefaultS3Prices()}
}

// Validate names the first setting that cannot work.
func (c Config) Validate() error {
	switch {
	case c.Dir == "":
		return errors.New("directory of the report: is empty; name one with --out")
	case c.Executable == "":
		return errors.New("executable: is empty; name the waybill binary")
	case c.Say == nil:
		return errors.New("the field Say is missing; give it a function that prints a line")
	case c.Given != nil && (c.Given.HTTPURL == "" || c.Given.GRPCAddr == ""):
		return errors.New("an existing system: give both --http-addr and --grpc-addr of its ingest")
	}
	if p := c.S3Prices; p.Puts < 0 || p.Gets < 0 || p.Storage < 0 {
		return fmt.Errorf("--s3-put-price, --s3-get-price and --s3-storage-price: %v, %v, %v; want dollars, 0 or more", p.Puts, p.Gets, p.Storage)
	}
	for _, d := range []struct {
		name  string
		value *time.Duration
		least time.Duration
	}{{"--warm-up", c.Settings.WarmUp, 0}, {"--for", c.Settings.For, time.Millisecond}} {
		if d.value != nil && *d.value < d.least {
			return fmt.Errorf("%s: %v; want at least %v", d.name, *d.value, d.least)
		}
	}
	if n := c.Settings.Bytes; n != nil && (*n < 0 || *n > maxTraceSize) {
		return fmt.Errorf("--bytes: %d; want 0 to %d, which is what fits an event", *n, maxTraceSize)
	}
	for _, n := range []struct {
		name  string
		value *int
	}{{"--events", c.Settings.Events}, {"--keys", c.Settings.Keys}, {"--closed", c.Settings.Callers}, {"--runs", c.Settings.Runs}, {"--pending", c.Settings.Pending}} {
		if n.value != nil && *n.value < 1 {
			return fmt.Errorf("%s: %d; want at least 1", n.name, *n.value)
		}
	}
	if r := c.Settings.Rate; r != nil && !(*r > 0) {
		return fmt.Errorf("--rate: %v; want more than 0 events a second", *r)
	}
	if v := c.Settings.Speed; v != nil && !(*v > 0) {
		return fmt.Errorf("--speed: %v; want more than 0, such as 2 for twice as fast", *v)
	}
	return nil
}

// apply puts the settings into a stage.
func (s Settings) apply(l *Load) {
	set(&l.WarmUp, s.WarmUp)
	set(&l.For, s.For)
	set(&l.Bytes, s.Bytes)
	set(&l.Events, s.Events)
	set(&l.Keys, s.Keys)
	if s.Rate != nil {
		l.Rate, l.Callers = *s.Rate, 0
	}
	if s.Callers != nil {
		l.Rate, l.Callers = 0, *s.Callers
	}
}

func set[T any](into, value *T) {
	if value != nil {
		*into = *value
	}
}
