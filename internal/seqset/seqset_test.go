package seqset

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// Whatever comes in whatever order, the set is what a map would be.
func TestSetIsAsAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var sets [2]Set
		maps := [2]map[int64]bool{{}, {}}
		for range rapid.IntRange(0, 60).Draw(t, "adds") {
			which := rapid.IntRange(0, 1).Draw(t, "set")
			n := rapid.Int64Range(1, 40).Draw(t, "n")
			if added := sets[which].Add(n); added == maps[which][n] {
				t.Fatalf("add %d: %v", n, added)
			}
			maps[which][n] = true
		}
		lowest := int64(0)
		for n := int64(40); n > 0; n-- {
			if sets[0].Has(n) != maps[0][n] {
				t.Fatalf("has %d: %v", n, sets[0].Has(n))
			}
			if maps[0][n] {
				lowest = n
			}
		}
		if least, ok := sets[0].Min(); least != lowest || ok != (lowest > 0) {
			t.Fatalf("the lowest is %d, %v; want %d", least, ok, lowest)
		}
		from, to := rapid.Int64Range(1, 40).Draw(t, "from"), rapid.Int64Range(1, 45).Draw(t, "to")
		var count int64
		var missing, got []int64
		for n := from; n <= to; n++ {
			if maps[0][n] {
				count++
			}
			if !maps[0][n] && !maps[1][n] {
				missing = append(missing, n)
			}
		}
		if sets[0].Count(from, to) != count {
			t.Fatalf("%d of %d to %d are in it, want %d", sets[0].Count(from, to), from, to, count)
		}
		last := int64(-1)
		for span := range Missing(from, to, &sets[0], &sets[1]) {
			if span.Len() < 1 || span.From <= last+1 {
				t.Fatalf("the span %v follows %d", span, last)
			}
			last = span.To
			for n := span.From; n <= span.To; n++ {
				got = append(got, n)
			}
		}
		if !slices.Equal(got, missing) {
			t.Fatalf("%d to %d: missing %v, want %v", from, to, got, missing)
		}
	})
}

// Numbers without a gap take one span, in whatever order they come.
func TestSetIsAsSmallAsItIsDense(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s Set
		for _, n := range rapid.Permutation([]int64{1, 2, 3, 4, 5, 6, 7, 8, 9}).Draw(t, "order") {
			s.Add(n)
		}
		if len(s.spans) != 1 {
			t.Fatalf("%v", s.spans)
		}
	})
}
