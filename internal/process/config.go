package process

import (
	"fmt"
	"io"
	"log/slog"
	"math"
	"runtime/debug"
	"time"

	"github.com/alecthomas/kong"

	"github.com/waybillhq/waybill/internal/intake"
	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/sinks"
)

// Logging is every process's.
type Logging struct {
	LogLevel  string `help:"Least severe level that is logged." enum:"debug,info,warn,error" default:"info"`
	LogFormat string `help:"Form of the log." enum:"json,text" default:"json"`
}

// logger returns a logger for the process of the given kind.
func (l Logging) logger(w io.Writer, kind string) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(l.LogLevel)) // the parser allows only these names
	options := &slog.HandlerOptions{Level: level}
	var h slog.Handler = slog.NewJSONHandler(w, options)
	if l.LogFormat == "text" {
		h = slog.NewTextHandler(w, options)
	}
	return slog.New(h).With("process", kind)
}

// Identity is every process's.
type Identity struct {
	ID        string `name:"id" want:"id" help:"Name of this process, unique among the live ones of its kind. Default: host, process id and start time."`
	AdminAddr string `want:"address" help:"Address of /livez, /readyz, /metrics and /debug/pprof." default:":9090"`
	// Host is the program that runs the process inside itself; nil: the process is a program.
	Host *Host `kong:"-"`
}

// name returns the configured name or a new one.
func (i Identity) name() string {
	if i.ID != "" {
		return i.ID
	}
	return pipeline.NewProcessID()
}

// Memory is every process's.
type Memory struct {
	MemoryLimit int64 `want:"not-negative" help:"Bytes of memory above which garbage is collected eagerly, unless GOMEMLIMIT says so; 0: never." default:"${memory_limit}"`
}

// defaultMemoryLimit leaves room below 200 MiB for what the runtime does not count: the
// program itself, and what is freed and not yet given back.
const defaultMemoryLimit = 120 << 20

// limit lets the collector keep the process below the limit as far as it can. One that
// GOMEMLIMIT has set stays.
func (m Memory) limit() {
	if m.MemoryLimit > 0 && debug.SetMemoryLimit(-1) == math.MaxInt64 {
		debug.SetMemoryLimit(m.MemoryLimit)
	}
}

// Database is of the processes that use Postgres.
type Database struct {
	DatabaseURL   string `name:"database-url" secret:"" want:"postgres" required:"" placeholder:"URL" help:"Postgres, as postgres://user:password@host:port/database. WAYBILL_DATABASE_URL_FILE names a file that holds it."`
	DatabaseConns int    `want:"positive" help:"Most connections to Postgres." default:"${database_conns}"`
}

func (d Database) config() pipeline.StoreConfig {
	c := pipeline.DefaultStoreConfig(d.DatabaseURL)
	c.MaxConns = d.DatabaseConns
	return c
}

// NATS is every process's.
type NATS struct {
	NATSURL   string `name:"nats-url" env:"WAYBILL_NATS_URL" secret:"" want:"nats" help:"NATS servers, comma-separated; user and password may be part of it." default:"nats://127.0.0.1:4222"`
	NATSCreds string `name:"nats-creds" env:"WAYBILL_NATS_CREDS" type:"path" want:"file" help:"File with NATS credentials."`
}

// Lanes is every process's.
type Lanes struct {
	Lanes int `want:"lanes" help:"Lanes of the pipeline. Must be the number it was created with." default:"${lanes}"`
}

func (l Lanes) validate() error {
	if l.Lanes < 1 || l.Lanes > pipeline.MaxLanes {
		return fmt.Errorf("lanes: %d; want 1 to %d", l.Lanes, pipeline.MaxLanes)
	}
	return nil
}

// checkAddr reports an address that no server can listen on, named by its setting.
func checkAddr(setting, addr string) error {
	if err := checkListen(addr); err != nil {
		return fmt.Errorf("%s: %w", setting, err)
	}
	return nil
}

// Streams is of those that create streams.
type Streams struct {
	QueueReplicas int           `help:"Replicas of the streams: 1, or 3 on a cluster." default:"${queue_replicas}"`
	QueueBytes    int64         `help:"Bytes that the stream EVENTS may take on disk." default:"${queue_bytes}"`
	LeaseTTL      time.Duration `help:"How long a lane stays with a forwarder that no longer answers." default:"${lease_ttl}"`
}

// QueueConfig is the settings as package pipeline wants them.
func (s Streams) QueueConfig() pipeline.QueueConfig {
	c := pipeline.DefaultQueueConfig()
	c.Replicas, c.MaxBytes, c.LeaseTTL = s.QueueReplicas, s.QueueBytes, s.LeaseTTL
	// Receipts are a hundredth of the size of events; never let them be the bottleneck.
	c.MaxReceiptBytes = max(s.QueueBytes/8, 64<<20)
	return c
}

// Defaults are the values behind ${…} in the structs' tags: the ones of the packages that
// use them, so that there is one place for each.
func Defaults() kong.Vars {
	store, queue := pipeline.DefaultStoreConfig(""), pipeline.DefaultQueueConfig()
	in, janitor := pipeline.DefaultIngesterConfig(), pipeline.DefaultJanitorConfig()
	front := intake.DefaultConfig()
	forwarder := pipeline.DefaultForwarderConfig()
	ingress, archive := sinks.DefaultIngressConfig(), sinks.DefaultArchiveConfig()
	s3 := DefaultS3()
	vars := kong.Vars{}
	for name, value := range map[string]any{
		"database_conns": store.MaxConns, "lanes": pipeline.DefaultLanes, "grace": pipeline.DefaultGrace,
		"dedupe_window": pipeline.DefaultDedupeWindow, "dedupe_bytes": in.DedupeBytes,
		"queue_replicas": queue.Replicas, "queue_bytes": queue.MaxBytes, "lease_ttl": queue.LeaseTTL,
		"max_event_bytes": front.MaxEventBytes, "max_request_bytes": front.MaxRequestBytes,
		"max_request_events": front.MaxRequestEvents, "budget_bytes": front.BudgetBytes,
		"event_ttl": in.EventTTL, "flush_events": in.FlushEvents, "queue_events": in.QueueEvents,
		"backlog_events": in.BacklogEvents, "backlog_bytes": in.BacklogBytes,
		"memory_limit": defaultMemoryLimit, "stop_timeout": in.StopTimeout, "replay_window": janitor.ReplayWindow,
		"dead_letter_ttl": janitor.DeadLetterTTL, "settle_linger": janitor.SettleLinger,
		"retransmit_every": janitor.RetransmitEvery,
		"in_flight":        forwarder.InFlight, "expiry_margin": forwarder.ExpiryMargin,
		"ingress_request_bytes": ingress.MaxRequestBytes, "ingress_request_events": ingress.MaxRequestEvents,
		"ingress_timeout": ingress.Timeout, "s3_path_style": s3.S3PathStyle,
		"s3_region": s3.S3Region, "s3_prefix": s3.S3Prefix, "s3_checksums": s3.S3Checksums, "archive_linger": archive.Linger,
		"archive_object_events": archive.MaxObjectEvents, "archive_object_bytes": archive.MaxObjectBytes,
	} {
		vars[name] = fmt.Sprint(value)
	}
	// Commands that do otherwise say so.
	vars["s3_endpoint_default"] = "S3-compatible server. Default: AWS."
	vars["s3_bucket_default"] = "empty: this process does not archive"
	return vars
}
