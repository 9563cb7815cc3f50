package pipeline

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// LetterState says where a dead letter stands.
type LetterState string

// The states of a dead letter. It is in one of them at a time.
const (
	// LetterDead is an event that the sink lacks: it can be requeued.
	LetterDead LetterState = "dead"
	// LetterRequeued is on its way again: only a receipt clears it.
	LetterRequeued LetterState = "requeued"
	// LetterLate expired, or its row was damaged, and then a receipt said that the sink had taken it
	// after all.
	LetterLate LetterState = "late"
)

// LetterStates are all of them.
var LetterStates = []LetterState{LetterDead, LetterRequeued, LetterLate}

// LetterFilter picks dead letters. A letter must match every field; the zero value matches
// all.
type LetterFilter struct {
	Sink string // exact; empty: any
	Code string // exact; empty: any
	// Source and Type match exactly, or, where they end in *, what begins with the rest. An
	// asterisk elsewhere stands for itself. Empty: any.
	Source, Type string
	ID           string // exact; empty: any
	// Since and Until bound the time of the failure by Postgres's clock, the first included
	// and the second not. Zero: unbounded.
	Since, Until time.Time
	States       []LetterState // empty: any
}

// Validate names the first field that can match nothing.
func (f LetterFilter) Validate() error {
	if !f.Since.IsZero() && !f.Until.IsZero() && !f.Since.Before(f.Until) {
		return fmt.Errorf("since: %s is not before until, %s; give an earlier one", f.Since.UTC().Format(time.RFC3339), f.Until.UTC().Format(time.RFC3339))
	}
	for _, s := range f.States {
		if !slices.Contains(LetterStates, s) {
			return fmt.Errorf("state: %q; want dead, requeued or late", s)
		}
	}
	return nil
}

// args are the filter's part of the parameters of find_letters.sql.
func (f LetterFilter) args() []any {
	source, sourceBegins := strings.CutSuffix(f.Source, "*")
	typ, typeBegins := strings.CutSuffix(f.Type, "*")
	states := f.States
	if len(states) == 0 {
		states = LetterStates
	}
	names := make([]string, len(states))
	for i, s := range states {
		names[i] = string(s)
	}
	return []any{f.Sink, f.Code, source, sourceBegins, typ, typeBegins, f.ID, names}
}

// without returns the filter without a state, and whether another is left. A filter that
// names only that state leaves none.
func (f LetterFilter) without(state LetterState) (LetterFilter, bool) {
	states := f.States
	if len(states) == 0 {
		states = LetterStates
	}
	f.States = slices.DeleteFunc(slices.Clone(states), func(s LetterState) bool { return s == state })
	return f, len(f.States) > 0
}
