package pipeline

import (
	"errors"
	"fmt"
)

// Why an event was not accepted. Callers branch on these with errors.Is; the front
// ends turn them into HTTP and gRPC statuses.
var (
	// ErrOverloaded means that a bounded buffer is full: nothing was stored, retry
	// later (HTTP 429, gRPC RESOURCE_EXHAUSTED).
	ErrOverloaded = errors.New("overloaded")
	// ErrBacklogFull is the ErrOverloaded of events that are refused because too many wait in
	// Postgres for their sinks: that takes longer to pass than a full buffer.
	ErrBacklogFull = fmt.Errorf("%w: the backlog is full", ErrOverloaded)
	// ErrUnavailable means that nothing was stored because Postgres refused or could
	// not be reached, or because this process is stopping (HTTP 503, gRPC UNAVAILABLE).
	ErrUnavailable = errors.New("unavailable")
	// ErrOutcomeUnknown means that the connection was lost around the commit: the
	// events may or may not be stored. The producer retries under the same ids, which
	// stores nothing twice within the dedupe window (HTTP 503, gRPC UNAVAILABLE).
	ErrOutcomeUnknown = errors.New("outcome of the commit is unknown")
	// ErrStopping is the ErrUnavailable of events that come when this process, or this emitter, is
	// stopping or has stopped.
	ErrStopping = fmt.Errorf("%w: stopping or stopped", ErrUnavailable)
	// ErrNotMigrated means that a database is not one that this build can work on until
	// `waybill migrate` is run on it.
	ErrNotMigrated = errors.New("the database is not migrated")
)

// InvalidEventError says which attribute of an event is wrong and what would mend it.
type InvalidEventError struct {
	Attribute string // CloudEvents attribute name, or "data"
	Reason    string // what is wrong and what is wanted
	TooLarge  bool   // over the size limit (HTTP 413)
}

func (e *InvalidEventError) Error() string { return fmt.Sprintf("%s: %s", e.Attribute, e.Reason) }

func invalid(attribute, format string, args ...any) error {
	return &InvalidEventError{Attribute: attribute, Reason: fmt.Sprintf(format, args...)}
}
