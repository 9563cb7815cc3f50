package waybilltest

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/waybillhq/waybill/internal/expect"
)

// Filter picks events: those that match every field that is set. The zero value picks all.
type Filter struct {
	// Source and Type match exactly, or, where they end in *, what begins with the rest.
	Source, Type string
	// Subject and ID match exactly.
	Subject, ID string
	// Extensions are attributes that the event must have, with these values.
	Extensions map[string]any
	// Match, which may be nil, has the last word: it sees what no field can say, such as the data.
	Match func(Event) bool
}

func (f Filter) matches(e Event) bool {
	if !expect.MatchesText(f.Source, e.Source) || !expect.MatchesText(f.Type, e.Type) ||
		f.Subject != "" && f.Subject != e.Subject || f.ID != "" && f.ID != e.ID {
		return false
	}
	for name, want := range f.Extensions {
		if !sameValue(e.Extensions[name], want) {
			return false
		}
	}
	return f.Match == nil || f.Match(e)
}

// sameValue compares values of attributes.
func sameValue(got, want any) bool {
	switch want := want.(type) {
	case int: // Emit sends it as an int32
		n, ok := got.(int32)
		return ok && int(n) == want
	case time.Time:
		at, ok := got.(time.Time)
		return ok && at.Equal(want)
	default:
		return reflect.DeepEqual(got, want)
	}
}

// String says in words what the filter picks.
func (f Filter) String() string {
	var parts []string
	for _, field := range []struct{ name, value string }{{"source", f.Source}, {"type", f.Type}, {"subject", f.Subject}, {"id", f.ID}} {
		if field.value != "" {
			parts = append(parts, fmt.Sprintf("%s %q", field.name, field.value))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(f.Extensions)) {
		parts = append(parts, fmt.Sprintf("%s %v", name, f.Extensions[name]))
	}
	if f.Match != nil {
		parts = append(parts, "what Match wants")
	}
	if len(parts) == 0 {
		return "anything"
	}
	return strings.Join(parts, ", ")
}
