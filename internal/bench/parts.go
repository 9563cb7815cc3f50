package bench

import (
	"fmt"
	"slices"
	"strings"
)

// inParts are the scenarios of which a part may be measured alone.
var inParts = []string{"store", "embedded", "outbox"}

// HasParts reports whether Settings.Part picks some of the scenario.
func (s Scenario) HasParts() bool { return slices.Contains(inParts, s.Name) }

// wantedParts are the parts of a scenario that have Settings.Part in their name: all, where it is nil.
func wantedParts[T any](s Settings, all []T, name func(T) string) ([]T, error) {
	if s.Part == nil {
		return all, nil
	}
	var wanted []T
	names := make([]string, len(all))
	for i, part := range all {
		if names[i] = name(part); strings.Contains(names[i], *s.Part) {
			wanted = append(wanted, part)
		}
	}
	if len(wanted) == 0 {
		return nil, fmt.Errorf("--part: %q is in no part's name; want a piece of one of: %s", *s.Part, strings.Join(names, "; "))
	}
	return wanted, nil
}
