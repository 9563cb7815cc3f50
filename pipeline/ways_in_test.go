package pipeline

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Invariants 4 and 11: an event that comes in by an ingest, by an emitter and by the outbox at the same time, through as many
// processes, is stored once.
func TestOneEventByThreeWays(t *testing.T) {
	r := mustRigAt(t, mustDedupeDatabase(t, time.Hour))
	r.mustIngesterAt(t, r.url, nil)
	e, _ := r.mustEmitter(t, nil)
	service := mustService(t, r.url)
	const callers, each = 8, 60
	var want []string
	var wg sync.WaitGroup
	for c := range callers {
		for i := range each {
			want = append(want, fmt.Sprintf("%d-%d", c, i))
		}
		wg.Go(func() {
			for i := range each {
				event := testCloudEvent(fmt.Sprint("/s/", i%5), fmt.Sprintf("%d-%d", c, i))
				var ways sync.WaitGroup
				for _, send := range []func() error{
					func() error {
						return r.in.Accept(t.Context(), []Event{mustEvent(t, event.Source, event.Type, event.ID)})
					},
					func() error { return e.Emit(t.Context(), event) },
					func() error {
						return pgx.BeginFunc(t.Context(), service.pool, func(tx pgx.Tx) error { return EmitTx(t.Context(), tx, event) })
					},
				} {
					ways.Go(func() {
						if err := send(); err != nil {
							t.Error(err)
						}
					})
				}
				ways.Wait()
			}
		})
	}
	wg.Wait()
	awaitTaken(t, r.store)
	assertStored(t, r.store, want)
}
