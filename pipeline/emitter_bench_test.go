package pipeline

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// BenchmarkEmit emits events of one key by some callers, and says how many go into a transaction.
func BenchmarkEmit(b *testing.B) {
	for _, callers := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprint(callers, " callers"), func(b *testing.B) {
			r := mustRig(b)
			e, _ := r.mustEmitter(b, nil)
			data := TextData(strings.Repeat("x", 256))
			var next atomic.Int64
			var wg sync.WaitGroup
			b.ReportAllocs()
			b.ResetTimer()
			for range callers {
				wg.Go(func() {
					for {
						i := next.Add(1)
						if i > int64(b.N) {
							return
						}
						if err := e.Emit(b.Context(), CloudEvent{Source: "/s", Type: "t", ID: fmt.Sprint(i), Data: data}); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			b.ReportMetric(float64(b.N)/float64(mustCount(b, r.store, `SELECT count(*) FROM waybill.batches`)), "events/transaction")
		})
	}
}
