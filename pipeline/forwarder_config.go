package pipeline

import (
	"errors"
	"fmt"
	"time"
)

// ForwarderConfig says how a forwarder takes lanes and feeds sinks.
//
// Memory: the workers of a sink, of which there is one per held lane, share SinkBytes
// evenly: one half of a worker's share is for the request in hand, the other for what comes
// next. Beyond its share a worker holds one message at most. So with every sink down and
// every lane backed up a forwarder holds SinkBytes per sink, whether it has few lanes or all.
type ForwarderConfig struct {
	// ID names the process among the live forwarders; the lanes of a sink are spread by it
	// over those that serve the sink. One that stays the same over restarts moves fewer
	// lanes.
	ID string
	// Version is shown by `waybill status`.
	Version string
	// Lanes of the pipeline.
	Lanes int
	// Sinks that this process serves, each with a name of its own. Every sink of the
	// pipeline needs a live forwarder that serves it, not every forwarder every sink.
	Sinks []Sink
	// InFlight bounds the requests in flight per sink, over all lanes of this process.
	InFlight int
	// ExpiryMargin is how long after a batch expired it is still delivered: the clocks of
	// Postgres and of this process differ.
	ExpiryMargin time.Duration
	// SinkBytes bounds what all workers of one sink hold, requests included.
	SinkBytes int
	// PrefetchMessages and PrefetchBytes bound what a worker holds beyond its request, where
	// its share of SinkBytes is not less.
	PrefetchMessages int
	PrefetchBytes    int
	// BackoffMin and BackoffMax bound the pause, which doubles, between tries of a request.
	BackoffMin, BackoffMax time.Duration
	// BreakerFailures is how many requests of a sink in a row end in an error before its
	// lanes wait for a probe to be answered, with whatever results. BreakerMin and
	// BreakerMax bound the pause, which doubles, between probes.
	BreakerFailures        int
	BreakerMin, BreakerMax time.Duration
	// Tracing makes spans of the sampled events that ingest traced; nil: none.
	Tracing *Tracing
	// RebalanceEvery is the pause between looks at who is alive.
	RebalanceEvery time.Duration
	// CheckEvery is the pause between comparisons of a worker with its consumer.
	CheckEvery time.Duration
	// StopTimeout bounds how long a worker that is to stop, because the process ends or
	// the lane moves, may go on with the request it has in flight.
	StopTimeout time.Duration
}

// DefaultForwarderConfig returns the settings of a forwarder but for ID and Sinks.
func DefaultForwarderConfig() ForwarderConfig {
	return ForwarderConfig{
		Lanes: DefaultLanes, InFlight: 4, ExpiryMargin: 10 * time.Minute,
		SinkBytes: 32 << 20, PrefetchMessages: 2048, PrefetchBytes: 4 << 20,
		BackoffMin: 100 * time.Millisecond, BackoffMax: 30 * time.Second,
		BreakerFailures: 5, BreakerMin: 500 * time.Millisecond, BreakerMax: 2 * time.Second,
		RebalanceEvery: time.Second, CheckEvery: 5 * time.Second, StopTimeout: 10 * time.Second,
	}
}

// Validate names the first setting that cannot work.
func (c ForwarderConfig) Validate() error {
	if err := ValidateProcessID(c.ID); err != nil {
		return err
	}
	if err := c.ValidateLimits(); err != nil {
		return err
	}
	return c.validateSinks()
}

// ValidateLimits is Validate for who does not know yet the id of the process, nor has its sinks.
func (c ForwarderConfig) ValidateLimits() error {
	switch {
	case c.Lanes < 1 || c.Lanes > MaxLanes:
		return fmt.Errorf("lanes: %d; want 1 to %d", c.Lanes, MaxLanes)
	case c.InFlight < 1:
		return fmt.Errorf("in flight: %d; want at least 1 request", c.InFlight)
	case c.ExpiryMargin < 0:
		return fmt.Errorf("expiry margin: %v; must not be negative", c.ExpiryMargin)
	case c.SinkBytes < 1<<20:
		return fmt.Errorf("bytes of a sink: %d; want at least 1048576", c.SinkBytes)
	case c.PrefetchMessages < 1 || c.PrefetchBytes < 64<<10:
		return fmt.Errorf("prefetch: %d messages, %d bytes; want at least 1 and 65536", c.PrefetchMessages, c.PrefetchBytes)
	case c.BackoffMin <= 0 || c.BackoffMax < c.BackoffMin:
		return fmt.Errorf("backoff: %v to %v; want 0 < minimum ≤ maximum", c.BackoffMin, c.BackoffMax)
	case c.BreakerFailures < 1:
		return fmt.Errorf("breaker failures: %d; want at least 1", c.BreakerFailures)
	case c.BreakerMin <= 0 || c.BreakerMax < c.BreakerMin:
		return fmt.Errorf("breaker pause: %v to %v; want 0 < minimum ≤ maximum", c.BreakerMin, c.BreakerMax)
	case c.RebalanceEvery <= 0 || c.CheckEvery <= 0:
		return fmt.Errorf("rebalance and check times: %v and %v; must be positive", c.RebalanceEvery, c.CheckEvery)
	case c.StopTimeout <= 0:
		return fmt.Errorf("stop timeout: %v; want more than 0", c.StopTimeout)
	}
	return nil
}

func (c ForwarderConfig) validateSinks() error {
	if len(c.Sinks) == 0 {
		return errors.New("sinks: none; configure at least one")
	}
	names := map[string]bool{}
	for _, s := range c.Sinks {
		name, limits := s.Name(), s.Limits()
		switch {
		case !sinkName.MatchString(name): // it stands in the keys of leases
			return fmt.Errorf("sinks: %q; a name is a lower-case letter followed by up to 31 letters, digits or underscores", name)
		case names[name]:
			return fmt.Errorf("sinks: the name %q is given twice", name)
		case limits.Events < 1 || limits.Bytes < 1 || limits.Linger < 0:
			return fmt.Errorf("sink %s: limits of %d events, %d bytes, %v linger; want positive ones and no negative linger", name, limits.Events, limits.Bytes, limits.Linger)
		}
		names[name] = true
	}
	return nil
}
