package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// step is one fault of a schedule.
type step struct {
	At   time.Duration // from the start of the load
	Hold time.Duration // until it is healed
	kind *kind
	on   string // target
}

func (s step) String() string {
	return fmt.Sprintf("%5.1fs  %s %s for %.1fs", s.At.Seconds(), s.kind.name, s.on, s.Hold.Seconds())
}

const (
	// warmUp is load without a fault, at the start; coolDown at most at the end: receipts
	// that a dead janitor held come again after 30 s, and the run has to end.
	warmUp   = 2 * time.Second
	coolDown = 6 * time.Second
	// Gaps between the beginnings of faults.
	minGap = time.Second
	maxGap = 3500 * time.Millisecond
	// atOnce is how many faults may be in force together.
	atOnce = 2
)

// draw makes the schedule of a seed. Its first fault goes through the table with the
// seeds, so that any len(kinds) successive ones inject each fault; all else is random.
func draw(seed uint64, length time.Duration, kinds []*kind) []step {
	r := rand.New(rand.NewPCG(seed, 0x6661756c7473))
	var steps []step
	end := length - min(coolDown, length/6)
	for at := warmUp; at < end; at += between(r, minGap, maxGap) {
		k := kinds[int(seed%uint64(len(kinds)))]
		if len(steps) > 0 {
			k = kinds[r.IntN(len(kinds))]
		}
		s := step{At: at, Hold: between(r, k.min, k.max), kind: k, on: k.targets[r.IntN(len(k.targets))]}
		if s.At+s.Hold > end && len(steps) > 0 {
			continue
		}
		if fits(steps, s) {
			steps = append(steps, s)
		}
	}
	return steps
}

func between(r *rand.Rand, low, high time.Duration) time.Duration {
	if high <= low {
		return low
	}
	return (low + time.Duration(r.Int64N(int64(high-low)))).Round(time.Millisecond)
}

// fits reports whether a step can be added: not too many at once, and none of those on
// what it breaks itself.
func fits(steps []step, s step) bool {
	together := 1
	for _, other := range steps {
		if other.At+other.Hold+settleDown <= s.At {
			continue
		}
		together++
		for _, part := range s.kind.parts(s.on) {
			if slices.Contains(other.kind.parts(other.on), part) {
				return false
			}
		}
	}
	return together <= atOnce
}

// settleDown is what a part gets to start again before it is broken anew.
const settleDown = 2 * time.Second
