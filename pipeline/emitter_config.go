package pipeline

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"
	"go.opentelemetry.io/otel/metric"
)

// EmitterConfig says how an emitter works. DefaultEmitterConfig fills it in; zero never means
// "default".
type EmitterConfig struct {
	// Store is the database of the pipeline. Its Meter and KeepPlans are the emitter's to set. What
	// its URL leaves out pgx takes from the usual variables (PGPASSWORD, ...).
	Store StoreConfig
	// NATSURL names the NATS servers of the pipeline, comma-separated; user and password may be
	// part of it. NATSOptions are added, such as nats.UserCredentials.
	NATSURL     string
	NATSOptions []nats.Option
	// Lanes is how many the pipeline must have; 0: whatever it has.
	Lanes int
	// ID names this emitter among the live ones, in `waybill status`: letters, digits, dashes,
	// underscores and single dots. Version is shown beside it; empty: none.
	ID      string
	Version string
	// MaxEventBytes bounds the encoding of one event.
	MaxEventBytes int
	// DedupeAttribute is an extension attribute that says, in place of the id, which events are
	// the same one. It must be that of all ingests and emitters of the pipeline; empty: none.
	DedupeAttribute string
	// AsyncEvents bounds the events of EmitAsync whose done has not returned; beyond it done
	// gets ErrOverloaded.
	AsyncEvents int
	// Ingester says how events are gathered into transactions. Its StopTimeout bounds the stop
	// (see Emitter.Run), and its Tracing makes the spans of the acceptance. Its Outbox.Take has the
	// emitter take events out of the outbox as ingests do, by default not; the rest of Outbox is the
	// emitter's to set.
	Ingester IngesterConfig
	// Logger gets what an operator should know. Never nil; slog.DiscardHandler logs nothing.
	Logger *slog.Logger
	// Meter makes the instruments; nil: there are none. Two emitters of one process need two
	// meters, or their gauges overwrite each other.
	Meter metric.Meter
}

// DefaultEmitterConfig returns the settings of an emitter to the pipeline with the given database
// and NATS servers. Its ID is new each time.
func DefaultEmitterConfig(databaseURL, natsURL string) EmitterConfig {
	c := EmitterConfig{
		Store: DefaultStoreConfig(databaseURL), NATSURL: natsURL,
		ID:            NewProcessID() + "-" + strings.ToLower(nuid.Next()[16:]),
		MaxEventBytes: DefaultMaxEventBytes, AsyncEvents: 10_000,
		Ingester: DefaultIngesterConfig(), Logger: slog.New(slog.DiscardHandler),
	}
	c.Ingester.Outbox.Take = false // ingests do; it takes a connection more
	// One for the transaction under way, one for all else.
	c.Store.MaxConns = 2
	return c
}

// Validate names the first setting that cannot work, alone or with another.
func (c EmitterConfig) Validate() error {
	if err := errors.Join(c.Store.Validate(), c.Ingester.Validate(), ValidateProcessID(c.ID), CheckIdentifyingAttribute(c.DedupeAttribute)); err != nil {
		return err
	}
	if _, err := pgxpool.ParseConfig(c.Store.URL); err != nil {
		// The parser's own message may hold the password.
		return errors.New("database url: cannot be parsed; want postgres://user:password@host:port/database")
	}
	if err := validateNATSURL(c.NATSURL); err != nil {
		return err
	}
	switch {
	case c.Lanes < 0 || c.Lanes > MaxLanes:
		return fmt.Errorf("lanes: %d; want 1 to %d, or 0 for those that the pipeline has", c.Lanes, MaxLanes)
	case c.MaxEventBytes < 1<<10:
		return fmt.Errorf("max event bytes: %d; want at least 1024", c.MaxEventBytes)
	case c.AsyncEvents < 1:
		return fmt.Errorf("async events: %d; want at least 1", c.AsyncEvents)
	case c.Logger == nil:
		return errors.New("logger: is nil; give one, or slog.New(slog.DiscardHandler) to log nothing")
	}
	return c.conflicts()
}

// conflicts names settings of which each could work without the other.
func (c EmitterConfig) conflicts() error {
	switch {
	case c.MaxEventBytes > c.Ingester.QueueBytes:
		return fmt.Errorf("max event bytes and the ingester's queue bytes: %d and %d; an event of the largest size would never fit, so raise the second or lower the first",
			c.MaxEventBytes, c.Ingester.QueueBytes)
	case int64(c.MaxEventBytes+maxEventOverhead) > c.Ingester.PublishBytes:
		return fmt.Errorf("max event bytes and the ingester's publish bytes: %d and %d; an event of the largest size would always be left to the janitor, so raise the second or lower the first",
			c.MaxEventBytes, c.Ingester.PublishBytes)
	case c.Ingester.FlushTimeout < c.Store.LockTimeout:
		return fmt.Errorf("the ingester's flush timeout and the store's lock timeout: %v and %v; a transaction would be given up before Postgres ends the wait, with an outcome that is unknown, so raise the first or lower the second",
			c.Ingester.FlushTimeout, c.Store.LockTimeout)
	case c.Store.Meter != nil:
		return errors.New("the store's meter: is set; set the emitter's Meter instead, which is the store's too")
	}
	return nil
}

// natsSchemes are those that the NATS client knows; it takes all others for nats.
var natsSchemes = []string{"nats", "tls", "ws", "wss"}

// validateNATSURL checks a list of servers as far as that is possible without them.
func validateNATSURL(list string) error {
	for server := range strings.SplitSeq(list, ",") {
		server = strings.TrimSpace(server)
		if server != "" && !strings.Contains(server, "://") {
			server = "nats://" + server
		}
		u, err := url.Parse(server)
		if err != nil || u.Host == "" {
			return errors.New("nats url: is empty or cannot be parsed; want nats://host:4222, several comma-separated") // it may hold a password
		}
		if !slices.Contains(natsSchemes, u.Scheme) {
			return fmt.Errorf("nats url: the scheme %s; want one of %s, such as nats://host:4222", u.Scheme, strings.Join(natsSchemes, ", "))
		}
	}
	return nil
}
