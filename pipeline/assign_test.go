package pipeline

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// Every number of lanes and forwarders: all lanes have an owner, nobody has more than
// ⌈lanes/live⌉ or less than ⌊lanes/live⌋, and the order of the list does not matter.
func TestAssignIsBalancedAndDeterministic(t *testing.T) {
	for _, lanes := range []int{1, 4, 16, 17, 64, 256} {
		for live := 1; live <= 20; live++ {
			ids := processNames(live)
			owners := assign(lanes, ids)
			count := map[string]int{}
			for lane, id := range owners {
				if id == "" {
					t.Fatalf("%d lanes, %d live: lane %d has no owner", lanes, live, lane)
				}
				count[id]++
			}
			for _, id := range ids {
				if n := count[id]; n < lanes/live || n > (lanes+live-1)/live {
					t.Errorf("%d lanes, %d live: %s has %d", lanes, live, id, n)
				}
			}
			rand.Shuffle(live, func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
			if again := assign(lanes, append(ids, ids[0])); !slices.Equal(owners, again) {
				t.Errorf("%d lanes, %d live: the order of the list or a repeated id changes the result", lanes, live)
			}
		}
	}
	if owners := assign(3, nil); !slices.Equal(owners, []string{"", "", ""}) {
		t.Errorf("nobody is alive, and yet: %q", owners)
	}
}

// When one joins or leaves, its own share has to move. Balance makes some other lanes move
// too: on average a quarter of that share.
func TestAssignMovesLittle(t *testing.T) {
	moved, share := 0, 0
	random := rand.New(rand.NewPCG(1, 2))
	for _, lanes := range []int{16, 64, 256} {
		for live := 1; live < 16; live++ {
			for range 5 {
				ids := processNames(live + 1)
				random.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
				small, large := assign(lanes, ids[:live]), assign(lanes, ids)
				n := 0
				for lane := range lanes {
					if small[lane] != large[lane] {
						n++
					}
				}
				own := (lanes + live) / (live + 1) // ⌈lanes/(live+1)⌉
				if n > 4*own+2 {
					t.Errorf("%d lanes, from %d forwarders to %d: %d lanes move; the share is %d", lanes, live, live+1, n, own)
				}
				moved, share = moved+n, share+own
			}
		}
	}
	if moved > share*5/4 {
		t.Errorf("%d lanes moved where %d had to", moved, share)
	}
	t.Logf("%d lanes moved where at least %d had to", moved, share)
}

func processNames(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("forwarder-%d.example", i)
	}
	return names
}
