package replay

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/sinks"
)

// Attribute is the extension in which a replayed event carries the name of its replay.
const Attribute = "replayid"

// Sources of a replay.
const (
	FromAuto    = "auto"
	FromStream  = "stream"
	FromArchive = "archive"
)

// queueMargin is more than the time by which two messages of the stream may be out of the order in
// which they were queued: less than the pipeline's grace period, which is 10 s unless it was changed.
const queueMargin = 5 * time.Minute

// Config says what is replayed, from where and to where. Start from DefaultConfig.
type Config struct {
	// Name goes into every event, and into the prefix of an archive of replays.
	Name string
	// Resumable keeps the state of the replay in JetStream. It takes a Queue.
	Resumable bool

	// Sink gets the events. Nil for a dry run.
	Sink pipeline.Sink
	// Target is where the sink delivers to, for people, and for a resume to compare.
	Target string

	// From is auto, stream or archive.
	From string
	// Queue is the pipeline's; nil: there is none, and From is archive.
	Queue *pipeline.Queue
	// Archive is the pipeline's; nil: there is none.
	Archive *sinks.ArchiveReader

	Filter
	// Since and Until bound when the events were accepted, the first included and the second not;
	// or the sequences of the stream, both included.
	Since, Until Point
	// Late is how long after it was accepted an event may have been archived and still be looked for.
	Late time.Duration

	// Rate is how many events a second are sent at most; 0: as many as can be.
	Rate float64
	// InFlight is how many requests are in flight at most.
	InFlight int
	// RetryFor is how long a request may be tried again while the sink takes nothing of it.
	RetryFor time.Duration
	// SaveEvery is the pause between two stores of the state.
	SaveEvery time.Duration

	// Warn, which may be nil, gets lines on what is out of the ordinary.
	Warn func(string)
}

// DefaultConfig lacks a name, a sink and a source.
func DefaultConfig() Config {
	return Config{
		From: FromAuto, Late: 7 * 24 * time.Hour, InFlight: 4, RetryFor: 5 * time.Minute, SaveEvery: time.Second,
	}
}

// MaxName is the longest name of a replay, bytes.
const MaxName = 64

// ValidateName refuses what does not fit a key of S3 or of JetStream.
func ValidateName(name string) error {
	const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
	if name == "" || len(name) > MaxName || strings.Trim(name, allowed) != "" || strings.Trim(name[:1], "-_") == "" {
		return fmt.Errorf("name: %q; want up to %d letters, digits, - and _, beginning with a letter or a digit", name, MaxName)
	}
	return nil
}

// Validate names the first setting that cannot work.
func (c Config) Validate() error {
	if err := ValidateName(c.Name); err != nil {
		return err
	}
	if err := c.Filter.Validate(); err != nil {
		return err
	}
	switch {
	case c.Rate < 0:
		return fmt.Errorf("rate: %v; want events a second, or 0 for no limit", c.Rate)
	case c.RetryFor <= 0:
		return fmt.Errorf("retry-for: %v; want a positive duration, such as 5m", c.RetryFor)
	case c.Late < 0:
		return fmt.Errorf("late: %v; want 0 or more", c.Late)
	case c.InFlight < 1 || c.SaveEvery <= 0:
		return errors.New("InFlight and SaveEvery: want positive ones")
	case c.Resumable && c.Queue == nil:
		return errors.New("name: the state of a replay that can be resumed is kept in NATS; set --nats-url")
	}
	return c.validateSpan()
}

func (c Config) validateSpan() error {
	sequences := c.Since.sequence > 0 || c.Until.sequence > 0
	now := time.Now()
	since, until := c.Since.at(now), c.Until.at(now)
	switch {
	case sequences && (c.Since.sequence == 0 && c.Since != Point{} || c.Until.sequence == 0 && c.Until != Point{}):
		return fmt.Errorf("since and until: %s and %s; give two times or two sequences", c.Since, c.Until)
	case sequences && c.Queue == nil:
		return errors.New("since and until: a number is a sequence of the stream, which is in NATS; set --nats-url")
	case sequences && c.From == FromArchive:
		return errors.New("since and until: a number is a sequence of the stream; give a time for the archive")
	case c.Until.sequence > 0 && c.Since.sequence > c.Until.sequence:
		return fmt.Errorf("since: %s is behind until, %s; give an earlier one", c.Since, c.Until)
	case !since.IsZero() && !until.IsZero() && !since.Before(until):
		return fmt.Errorf("since: %s is not before until, %s; give an earlier one", since.Format(time.RFC3339), until.Format(time.RFC3339))
	}
	switch c.From {
	case FromAuto, FromStream, FromArchive:
	default:
		return fmt.Errorf("from: %q; want auto, stream or archive", c.From)
	}
	if c.From == FromStream && c.Queue == nil {
		return errors.New("from: the stream is in NATS; set --nats-url")
	}
	if c.From == FromArchive && c.Archive == nil {
		return errors.New("from: no archive is configured; set --s3-bucket or WAYBILL_S3_BUCKET")
	}
	return nil
}

func (c Config) warn(format string, args ...any) {
	if c.Warn != nil {
		c.Warn(fmt.Sprintf(format, args...))
	}
}
