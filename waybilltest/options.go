package waybilltest

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/waybillhq/waybill/pipeline"
)

// Option changes what Start starts.
type Option func(*settings)

// settings are what the options change.
type settings struct {
	lanes           int
	eventTTL        time.Duration
	dedupeAttribute string
	behaviour       Behaviour
	log             *slog.Logger // nil: warnings, in the test's output
}

// defaultLanes are fewer than a real system has: each costs a consumer and a worker for each sink.
const defaultLanes = 4

func defaultSettings() settings {
	return settings{lanes: defaultLanes, eventTTL: pipeline.DefaultIngesterConfig().EventTTL}
}

func (s settings) validate() error {
	var errs []error
	if s.lanes < 1 || s.lanes > pipeline.MaxLanes {
		errs = append(errs, fmt.Errorf("WithLanes(%d): want 1 to %d", s.lanes, pipeline.MaxLanes))
	}
	if s.eventTTL < 0 {
		errs = append(errs, fmt.Errorf("WithEventTTL(%v): want 0, which means for ever, or more", s.eventTTL))
	}
	if err := pipeline.CheckIdentifyingAttribute(s.dedupeAttribute); err != nil {
		errs = append(errs, fmt.Errorf("WithDedupeAttribute: %w", err))
	}
	if err := s.behaviour.validate(); err != nil {
		errs = append(errs, fmt.Errorf("WithBehaviour: %w", err))
	}
	return errors.Join(errs...)
}

// WithLanes sets the number of lanes; default 4. Events of one source and type have one lane, and so an order.
func WithLanes(n int) Option { return func(s *settings) { s.lanes = n } }

// WithEventTTL sets how long an event may wait for its sinks before it becomes a dead letter, as
// WAYBILL_EVENT_TTL does; default seven days.
func WithEventTTL(d time.Duration) Option { return func(s *settings) { s.eventTTL = d } }

// WithDedupeAttribute names the extension attribute that says which events are the same one, as
// WAYBILL_DEDUPE_ATTRIBUTE does; default: none, the id does.
func WithDedupeAttribute(name string) Option { return func(s *settings) { s.dedupeAttribute = name } }

// WithBehaviour is that of the endpoint from the start on.
func WithBehaviour(b Behaviour) Option { return func(s *settings) { s.behaviour = b } }

// WithLog has the processes log to a logger of your own; default: warnings and errors, in the output of the test.
func WithLog(log *slog.Logger) Option { return func(s *settings) { s.log = log } }
