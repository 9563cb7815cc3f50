package replay

import (
	"errors"
	"testing"

	"github.com/waybillhq/waybill/pipeline"
)

// A process that was told that another one runs the replay never stores a state again: it would undo
// what the other one did, and stop that in turn.
func TestAStateThatWasTakenOverStaysSo(t *testing.T) {
	s := mustSite(t)
	config := s.config(newRecorder())
	open := func() *keeper {
		k, _, err := openKeeper(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	save := func(k *keeper, events int64) error {
		return k.save(t.Context(), state{Counts: Counts{Events: events}})
	}
	first := open()
	if err := save(first, 1); err != nil {
		t.Fatal(err)
	}
	second := open()
	if err := save(second, 2); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := save(first, 3); !errors.Is(err, pipeline.ErrReplayTaken) {
			t.Errorf("the first one: %v", err)
		}
	}
	if err := save(second, 4); err != nil {
		t.Errorf("the second one: %v", err)
	}
	if _, before, err := openKeeper(t.Context(), config); err != nil || before.Counts.Events != 4 {
		t.Errorf("%+v, %v", before, err)
	}
}
