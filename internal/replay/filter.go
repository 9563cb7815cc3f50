package replay

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/waybillhq/waybill/pipeline"
)

// Filter picks events. An event must match every field; the zero value matches all.
type Filter struct {
	Lanes []int // empty: any
	// Source and Type match exactly, or, where they end in *, what begins with the rest. An
	// asterisk elsewhere stands for itself. Empty: any.
	Source, Type string
}

// Validate names the first field that can match nothing.
func (f Filter) Validate() error {
	for _, lane := range f.Lanes {
		if lane < 0 || lane >= pipeline.MaxLanes {
			return fmt.Errorf("lane: %d; want 0 to %d", lane, pipeline.MaxLanes-1)
		}
	}
	if len(f.Source) > pipeline.MaxSourceBytes+1 || len(f.Type) > pipeline.MaxTypeBytes+1 {
		return errors.New("source and type: longer than any event's")
	}
	return nil
}

func (f Filter) lane(lane int) bool { return len(f.Lanes) == 0 || slices.Contains(f.Lanes, lane) }

func (f Filter) key(source, typ string) bool {
	return matches(f.Source, source) && matches(f.Type, typ)
}

func matches(pattern, text string) bool {
	if begin, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(text, begin)
	}
	return pattern == "" || pattern == text
}
