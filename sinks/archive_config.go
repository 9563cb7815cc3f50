package sinks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"go.opentelemetry.io/otel/metric"

	"github.com/waybillhq/waybill/pipeline"
)

// ArchiveConfig configures the sink that appends to an S3 bucket. Start from
// DefaultArchiveConfig: a zero means zero.
type ArchiveConfig struct {
	// Name is the sink's name in Postgres's table of sinks.
	Name string

	// Bucket holds the archive. Objects of versions, lifecycle rules and other tenants
	// may be in it, but nothing else under Prefix.
	Bucket string

	// Prefix comes before every key, without a slash at either end; empty: none.
	// Each pipeline needs a prefix of its own.
	Prefix string

	// CreateBucket has Probe create a missing bucket. For development: in production a
	// missing bucket is a mistake in the configuration.
	CreateBucket bool

	// MaxObjectEvents, MaxObjectBytes (of encoded events) and Linger end an object,
	// whichever comes first. One batch may exceed the first two alone. Every object
	// costs a PUT: at 10 s and 16 lanes, about $0.70 a day.
	MaxObjectEvents int
	MaxObjectBytes  int
	Linger          time.Duration

	// Timeout bounds one request to S3, the client's own retries included. What it cuts
	// off may have been done: it is tried again, and what stands decides.
	Timeout time.Duration

	// RememberedBatches is how many of the batches archived last are kept in memory per
	// lane, at 60 bytes each, or 200 where every object holds one: 20 to 64 MB for 16 lanes.
	// A batch accepted before those is looked for in the bucket, which costs a small GET for
	// each object written since it was accepted.
	RememberedBatches int

	// Partial lets a request hold parts of batches, as a replay of some events does. Always the
	// same ones: what the archive holds a part of it takes for archived.
	Partial bool

	// Cursors remembers where the lanes end; nil: nobody does, and a takeover costs some
	// 20 LIST requests instead of one.
	Cursors Cursors

	// Meter makes the sink's instruments; nil records nothing.
	Meter metric.Meter

	// Log is required.
	Log *slog.Logger
}

// Cursors remembers, per lane, the offset of an object near the end of the log. It is a
// hint: one that is lost, too low or beyond the end costs time only, and so errors of
// both methods are logged and otherwise of no consequence.
type Cursors interface {
	// Load returns the offset stored last; ok is false where there is none.
	Load(ctx context.Context, lane int) (offset int64, ok bool, err error)
	// Store is called after an object was written, every few seconds at most.
	Store(ctx context.Context, lane int, offset int64) error
}

// DefaultArchiveConfig is complete but for Bucket and Log.
func DefaultArchiveConfig() ArchiveConfig {
	return ArchiveConfig{
		Name:            "archive",
		Prefix:          "waybill",
		MaxObjectEvents: 10_000,
		MaxObjectBytes:  8 << 20,
		Linger:          10 * time.Second,
		// A PUT of 8 MiB takes a second; one that takes 30 will not end.
		Timeout:           30 * time.Second,
		RememberedBatches: 20_000,
	}
}

// Validate names the first field that cannot work and what would.
func (c ArchiveConfig) Validate() error {
	switch {
	case c.Name == "":
		return errors.New("ArchiveConfig.Name is empty: use the sink's name in the table of sinks, such as \"archive\"")
	case c.Bucket == "":
		return errors.New("ArchiveConfig.Bucket is empty: name the bucket of the archive")
	case c.MaxObjectEvents < 1:
		return fmt.Errorf("ArchiveConfig.MaxObjectEvents (WAYBILL_ARCHIVE_OBJECT_EVENTS) is %d: want at least 1", c.MaxObjectEvents)
	case c.MaxObjectBytes < 1:
		return fmt.Errorf("ArchiveConfig.MaxObjectBytes (WAYBILL_ARCHIVE_OBJECT_BYTES) is %d: want at least 1", c.MaxObjectBytes)
	case c.Linger < 0:
		return fmt.Errorf("ArchiveConfig.Linger (WAYBILL_ARCHIVE_LINGER) is %s: want 0 or more", c.Linger)
	case c.Timeout <= 0:
		return fmt.Errorf("ArchiveConfig.Timeout is %s: want more than 0, such as 30s", c.Timeout)
	case c.RememberedBatches < 1:
		return fmt.Errorf("ArchiveConfig.RememberedBatches is %d: want at least 1", c.RememberedBatches)
	case c.Log == nil:
		return errors.New("ArchiveConfig.Log is nil: pass a *slog.Logger")
	}
	return checkArchivePrefix(c.Prefix)
}

// checkArchivePrefix refuses what some servers would store under another name.
func checkArchivePrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	for part := range strings.SplitSeq(prefix, "/") {
		if part == "" || part == "." || part == ".." {
			return fmt.Errorf("ArchiveConfig.Prefix (WAYBILL_S3_PREFIX) is %q: want names with single slashes between them, such as \"waybill\"", prefix)
		}
	}
	return nil
}

func (c ArchiveConfig) limits() pipeline.Limits {
	return pipeline.Limits{Events: c.MaxObjectEvents, Bytes: c.MaxObjectBytes, Linger: c.Linger}
}

// LogValue is the configuration in force, for the log.
func (c ArchiveConfig) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("name", c.Name), slog.String("bucket", c.Bucket), slog.String("prefix", c.Prefix),
		slog.Int("max_object_events", c.MaxObjectEvents), slog.Int("max_object_bytes", c.MaxObjectBytes),
		slog.Duration("linger", c.Linger), slog.Duration("timeout", c.Timeout),
		slog.Int("remembered_batches", c.RememberedBatches),
	)
}
