package pipeline

import (
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrNotRunning is the ErrUnavailable of events that are emitted before Run was called.
	ErrNotRunning = fmt.Errorf("%w: the emitter does not run yet; call its Run first", ErrUnavailable)
	// ErrRunTwice means that Run was called before.
	ErrRunTwice = errors.New("the emitter's Run was called before; make a new emitter for each")
)

// HealthError is what is wrong with an emitter. errors.Is finds the causes that have a name, such
// as ErrNotMigrated, ErrNoJanitor and ErrNotRunning.
type HealthError struct {
	// Readiness.Ready tells the two kinds apart: true, and events are emitted, but somebody
	// should know of what is degraded; false, and none are.
	Readiness
}

func (e *HealthError) Error() string {
	var parts []string
	for _, p := range e.Problems {
		parts = append(parts, "not ready: "+p.String())
	}
	for _, p := range e.Degraded {
		parts = append(parts, "degraded: "+p.String())
	}
	return strings.Join(parts, "; ")
}

// Unwrap returns the causes.
func (e *HealthError) Unwrap() []error {
	var errs []error
	for _, p := range e.all() {
		if p.err != nil {
			errs = append(errs, p.err)
		}
	}
	return errs
}
