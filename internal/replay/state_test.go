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

// Who takes a replay over wins against one that stores its state in between, and goes on from there.
func TestAReplayIsTakenOverWhileItsStateIsStored(t *testing.T) {
	s := mustSite(t)
	config := s.config(newRecorder())
	first, _, err := openKeeper(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	save := func(k *keeper, events int64, done bool) error {
		return k.save(t.Context(), state{Counts: Counts{Events: events}, Done: done})
	}
	if err := save(first, 1, false); err != nil {
		t.Fatal(err)
	}
	second, before, err := openKeeper(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	if err := save(first, 2, false); err != nil {
		t.Fatal(err)
	}
	if now, err := second.takeOver(t.Context(), *before); err != nil || now.Counts.Events != 2 {
		t.Errorf("%+v, %v; want the 2 events that were stored in between", now, err)
	}
	if err := save(first, 3, false); !errors.Is(err, pipeline.ErrReplayTaken) {
		t.Errorf("the first one: %v", err)
	}
	third, before, err := openKeeper(t.Context(), config)
	if err != nil || before.Counts.Events != 2 {
		t.Fatalf("%+v, %v", before, err)
	}
	if err := save(second, 4, true); err != nil {
		t.Fatal(err)
	}
	if now, err := third.takeOver(t.Context(), *before); err != nil || !now.Done || now.Counts.Events != 4 {
		t.Errorf("%+v, %v; want the replay that was done in between", now, err)
	}
	if _, now, err := openKeeper(t.Context(), config); err != nil || now.Run != second.run {
		t.Errorf("%+v, %v; want a replay that is done to stay as it is", now, err)
	}
}
