package pipeline

import (
	"fmt"
	"slices"
	"testing"
)

// Invariant 12: the events of one transaction, of which no read gets more than a part, are taken once and in their order, if
// it commits before a taker has looked, or after.
func TestOneTransactionOfManyEvents(t *testing.T) {
	r := mustRig(t)
	service := mustService(t, r.url)
	const n, keys = 20_000, 5
	want := map[string][]string{}
	emit := func(name string, late bool) {
		t.Helper()
		var events []CloudEvent
		for i := range n {
			source, id := fmt.Sprint("/s/", i%keys), fmt.Sprintf("%s-%d", name, i)
			events, want[source] = append(events, testCloudEvent(source, id)), append(want[source], id)
		}
		tx := service.mustBegin(t)
		mustEmitIn(t, tx, events...)
		if late {
			service.mustEmit(t, testCloudEvent("/other", name))
			eventually(t, patience, "the taker looks past the open transaction", func() bool { return len(r.stored(t, "/other")) > 0 })
		}
		mustCommit(t, tx)
		awaitTaken(t, r.store)
	}
	emit("a", false)
	emit("b", true)
	got := storedIDs(t, r.store)
	for source, ids := range want {
		if !slices.Equal(got[source], ids) {
			t.Errorf("%s: %d events are stored, %d were emitted, or in another order", source, len(got[source]), len(ids))
		}
	}
	assertDense(t, r.store)
}
