package devrun

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/waybillhq/waybill/internal/process"
	"github.com/waybillhq/waybill/internal/supervisor"
	"github.com/waybillhq/waybill/pipeline"
)

// Config says what a Stack consists of. Start from DefaultConfig.
type Config struct {
	// Dir holds the data, logs and ports; a later start on it goes on where it was.
	Dir string
	// Executable is the waybill binary, whose commands the processes are.
	Executable string
	// Env is the environment of the processes, as KEY=value. What the stack itself has
	// to say to them overrides it.
	Env []string
	// EnvOf, which may be nil, is what else stands in the environment of the named process
	// or server (such as ingest-1 or postgres); it overrides all other.
	EnvOf func(name string) []string
	// HTTPAddr and GRPCAddr are the first ingest's. FreePorts replaces their ports, which
	// otherwise must be free.
	HTTPAddr, GRPCAddr string
	FreePorts          bool
	// Numbers of processes, each at least 1.
	Ingests, Forwarders, Janitors int
	// NATSServers is 1, or the number of servers of a cluster.
	NATSServers int
	// Lanes of the pipeline, fixed when its tables are created.
	Lanes int
	// Grace is the pipeline's grace period, set when its tables are created.
	Grace time.Duration
	// DedupeWindow is how long accepted events are remembered; 0: not at all.
	DedupeWindow time.Duration
	// Queue is how streams are made, unless Env says otherwise to the janitors.
	Queue pipeline.QueueConfig
	// KeepSpans is how many of the newest spans of its processes the stack keeps itself, at about
	// 1.8 KiB each, for who asks at Stack.TraceQueryURL; each event is traced then, unless Env says
	// otherwise. 0: none. None either where Env says where spans go, or that there are to be none.
	KeepSpans int
	// WithoutArchive leaves out the sink archive and the S3 server.
	WithoutArchive bool
	// ArchiveLinger is how long an object waits to be filled, unless Env says otherwise.
	ArchiveLinger time.Duration

	// Existing servers to use instead of own ones; empty: own ones. EndpointAdmin is the
	// URL of the admin address of an existing `waybill endpoint`.
	DatabaseURL, NATSURL           string
	IngressEndpoint, EndpointAdmin string
	// S3 is complete if its S3Endpoint is set.
	S3 process.S3

	// Via, which may be nil, says by which host:port a process reaches a server whose own
	// is addr: through something that stands between the two. server is postgres, nats, s3
	// or endpoint; of a cluster nats-1 and so on, and for these servers among themselves
	// routes-1 and so on.
	Via func(process, server, addr string) (string, error)

	// RestartPause bounds the pause, which doubles, before a part that ended is started again.
	RestartPause time.Duration

	// Say receives lines for people: what is slow, ended, or was started again.
	Say func(string)
}

// DefaultConfig is one process of each kind and no existing server. Dir, Executable and
// Say are missing.
func DefaultConfig() Config {
	return Config{
		S3:       process.DefaultS3(),
		HTTPAddr: "127.0.0.1:8080", GRPCAddr: "127.0.0.1:50051",
		Ingests: 1, Forwarders: 1, Janitors: 1, NATSServers: 1,
		Lanes: pipeline.DefaultLanes, Grace: pipeline.DefaultGrace, DedupeWindow: pipeline.DefaultDedupeWindow,
		Queue: pipeline.DefaultQueueConfig(), ArchiveLinger: 2 * time.Second,
		RestartPause: supervisor.MaxPause,
	}
}

// Validate names the first setting that cannot work.
func (c Config) Validate() error {
	switch {
	case c.Dir == "":
		return errors.New("directory: is empty; name one for the data")
	case c.Executable == "":
		return errors.New("executable: is empty; name the waybill binary")
	case c.Say == nil:
		return errors.New("the field Say is missing; give it a function that prints a line")
	case c.Lanes < 1 || c.Lanes > pipeline.MaxLanes:
		return fmt.Errorf("lanes: %d; want 1 to %d", c.Lanes, pipeline.MaxLanes)
	case c.Grace < time.Second:
		return fmt.Errorf("grace: %v; want at least 1s", c.Grace)
	case c.RestartPause <= 0:
		return fmt.Errorf("restart pause: %v; want a positive duration", c.RestartPause)
	case c.KeepSpans < 0 || c.KeepSpans > 0 && c.KeepSpans < leastSpans:
		return fmt.Errorf("keep spans: %d; want 0, or at least %d", c.KeepSpans, leastSpans)
	case c.ArchiveLinger < 0:
		return fmt.Errorf("archive linger: %v; want 0 or more", c.ArchiveLinger)
	}
	if err := c.Queue.Validate(); err != nil {
		return err
	}
	for _, n := range []struct {
		name  string
		value int
	}{{"ingests", c.Ingests}, {"forwarders", c.Forwarders}, {"janitors", c.Janitors}, {"NATS servers", c.NATSServers}} {
		if n.value < 1 || n.value > maxOfAKind {
			return fmt.Errorf("%s: %d; want 1 to %d", n.name, n.value, maxOfAKind)
		}
	}
	for _, addr := range []struct{ name, value string }{{"http-addr", c.HTTPAddr}, {"grpc-addr", c.GRPCAddr}} {
		if _, _, err := net.SplitHostPort(addr.value); err != nil {
			return fmt.Errorf("%s: %q; want host:port, such as 127.0.0.1:8080", addr.name, addr.value)
		}
	}
	return nil
}

// maxOfAKind keeps the database's connections enough for all processes.
const maxOfAKind = 8

// sayWriter lets what wants an io.Writer say lines.
type sayWriter func(string)

var _ io.Writer = sayWriter(nil)

func (s sayWriter) Write(p []byte) (int, error) {
	s(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}
