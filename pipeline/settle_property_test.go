package pipeline

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// settleSinks are the sinks of the settle properties. The last one is none that a batch waits for.
var settleSinks = []string{"archive", "ingress", "search", "stranger"}

// modelBatch is a batch as the simplest model of settling has it.
type modelBatch struct {
	id       BatchID
	waiting  []string // sorted
	events   int
	requeued bool
}

// drawBatches makes some batches with different numbers, so that neighbours and gaps occur.
func drawBatches(t *rapid.T) map[int64]modelBatch {
	batches := map[int64]modelBatch{}
	for range rapid.IntRange(1, 8).Draw(t, "batches") {
		number := rapid.Int64Range(1, 12).Draw(t, "number")
		b := modelBatch{id: BatchID{number, rapid.Uint64Range(1, 2).Draw(t, "token")}, events: rapid.IntRange(1, 4).Draw(t, "events")}
		for _, sink := range settleSinks[:3] {
			if !oneIn(t, 4, "has "+sink) {
				b.waiting = append(b.waiting, sink)
			}
		}
		if len(b.waiting) == 0 {
			b.waiting = []string{"archive"}
		}
		if oneIn(t, 4, "requeued") {
			b.requeued, b.events, b.waiting = true, 1, b.waiting[:1]
		}
		batches[number] = b
	}
	return batches
}

// drawReceipts makes receipts: for batches that are there, for others, with the wrong token,
// repeated and contradictory.
func drawReceipts(t *rapid.T) []Receipt {
	receipts := make([]Receipt, rapid.IntRange(1, 6).Draw(t, "receipts"))
	for i := range receipts {
		receipts[i].Sink = rapid.SampledFrom(settleSinks).Draw(t, "sink")
		for range rapid.IntRange(1, 6).Draw(t, "batches of a receipt") {
			b := BatchReceipt{ID: BatchID{rapid.Int64Range(1, 13).Draw(t, "number"), rapid.Uint64Range(1, 2).Draw(t, "token")}}
			for oneIn(t, 4, "refuses") && len(b.Refused) < 4 {
				b.Refused = append(b.Refused, Refusal{
					Index: rapid.IntRange(0, 4).Draw(t, "index"), Code: fmt.Sprintf("C%d.%d", i, len(b.Refused)),
				})
			}
			receipts[i].Batches = append(receipts[i].Batches, b)
		}
	}
	return receipts
}

// locked returns the settlement of receipts as it is once the rows were locked.
func locked(receipts []Receipt, batches map[int64]modelBatch) *settlement {
	w := gather(receipts)
	for _, c := range w.claims {
		if b, ok := batches[c.id.Number]; ok && b.id == c.id {
			c.found, c.waiting, c.events, c.requeued = true, b.waiting, b.events, b.requeued
		}
	}
	return w
}

// word returns what a sink's first receipt says of a batch.
func word(receipts []Receipt, id BatchID, sink string) (refused map[int]string, ok bool) {
	for _, r := range receipts {
		for _, b := range r.Batches {
			if r.Sink != sink || b.ID != id {
				continue
			}
			refused = map[int]string{}
			for _, f := range b.Refused {
				refused[f.Index] = f.Code
			}
			return refused, true
		}
	}
	return nil, false
}

// Whatever receipts say, in any order, repeated or for other batches: a sink is taken off a batch
// where its receipt has number and token, an event that it refused becomes its dead letter, and
// rows go, all of a batch, when it waits for nobody, and only then.
func TestSettlementIsWhatTheReceiptsSay(t *testing.T) {
	check(t, 5000, func(t *rapid.T) {
		batches, receipts := drawBatches(t), drawReceipts(t)
		w := locked(receipts, batches)
		done := Settled{DeadLetters: map[SinkCode]int{}}
		r := w.sort(&done)

		var settled, waiting, requeued, refused []string
		for _, number := range slices.Sorted(maps.Keys(batches)) {
			b := batches[number]
			remaining := slices.Clone(b.waiting)
			for _, sink := range b.waiting {
				words, ok := word(receipts, b.id, sink)
				if !ok {
					continue
				}
				remaining = slices.DeleteFunc(remaining, func(s string) bool { return s == sink })
				letters := 0
				for index := range b.events {
					if code, ok := words[index]; ok {
						letters++
						refused = append(refused, fmt.Sprint(Position(number, index), sink, code))
					}
				}
				if b.requeued && letters == 0 {
					requeued = append(requeued, fmt.Sprint(number, b.id.Token, sink))
				}
			}
			switch {
			case len(remaining) == 0:
				settled = append(settled, fmt.Sprint(number))
			case len(remaining) < len(b.waiting):
				waiting = append(waiting, fmt.Sprint(number, strings.Join(remaining, ",")))
			}
		}
		same(t, "batches that settle", settled, rowsOf(len(r.settled), func(i int) string { return fmt.Sprint(r.settled[i]) }))
		same(t, "batches that wait on", waiting, rowsOf(len(r.waitingBatches), func(i int) string { return fmt.Sprint(r.waitingBatches[i], r.waitingRemaining[i]) }))
		same(t, "dead letters", refused, rowsOf(len(r.refusedPositions), func(i int) string {
			return fmt.Sprint(r.refusedPositions[i], r.refusedSinks[i], r.refusedCodes[i])
		}))
		same(t, "requeued events that arrived", requeued, rowsOf(len(r.requeuedBatches), func(i int) string {
			return fmt.Sprint(r.requeuedBatches[i], r.requeuedTokens[i], r.requeuedSinks[i])
		}))
		checkRanges(t, r)
	})
}

// checkRanges wants the deleted positions to be exactly those of the settled batches.
func checkRanges(t *rapid.T, r *settleRows) {
	for number := int64(0); number < 15; number++ {
		gone := false
		for i := range r.first {
			gone = gone || Position(number, 0) >= r.first[i] && Position(number, MaxBatchEvents-1) < r.past[i]
			if r.first[i]%MaxBatchEvents != 0 || r.past[i]%MaxBatchEvents != 0 || r.first[i] >= r.past[i] {
				t.Fatalf("a range from %d to %d is not one of whole batches", r.first[i], r.past[i])
			}
		}
		if gone != slices.Contains(r.settled, number) {
			t.Fatalf("batch %d: events deleted %v, settled %v", number, gone, !gone)
		}
	}
}

func rowsOf(n int, row func(int) string) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = row(i)
	}
	return out
}

// same compares without regard to order.
func same(t *rapid.T, what string, want, got []string) {
	t.Helper()
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(want, got) {
		t.Fatalf("%s:\nwant %v\ngot  %v", what, want, got)
	}
}

// However often receipts are halved because they take too long, their parts say what they said,
// in its order, and in the end no part holds more than one batch.
func TestHalvesSayTheSame(t *testing.T) {
	check(t, 3000, func(t *rapid.T) {
		receipts := drawReceipts(t)
		var parts []string
		var split func([]Receipt)
		split = func(rs []Receipt) {
			a, b := halves(rs)
			if len(b) > 0 {
				split(a)
				split(b)
				return
			}
			if len(a) != 1 || len(a[0].Batches) != 1 {
				t.Fatalf("%v is not halved any further", a)
			}
			parts = append(parts, fmt.Sprint(a[0].Sink, a[0].Lane, a[0].Batches[0]))
		}
		split(receipts)
		var want []string
		for _, r := range receipts {
			for _, b := range r.Batches {
				want = append(want, fmt.Sprint(r.Sink, r.Lane, b))
			}
		}
		if !slices.Equal(want, parts) {
			t.Fatalf("want %v, got %v", want, parts)
		}
	})
}
