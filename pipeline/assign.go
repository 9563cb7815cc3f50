package pipeline

import (
	"cmp"
	"slices"
	"strconv"
)

// assign says which of the live forwarders is to have each lane: result[lane] is its id, or
// "" when there is none. Every forwarder works it out by itself, so the result depends on
// nothing but the set of ids; the leases settle who has a lane while they disagree.
//
// It is rendezvous hashing with bounded load: of all pairs of a lane and a forwarder the
// one with the highest score is matched first, and each forwarder takes ⌊N/live⌋ lanes, the
// first N mod live that get there one more. One that joins or leaves moves its own share,
// and on average less than a quarter of that besides.
func assign(lanes int, forwarders []string) []string {
	owners := make([]string, lanes)
	ids := slices.Compact(slices.Sorted(slices.Values(forwarders)))
	if len(ids) == 0 {
		return owners
	}
	share, extra := lanes/len(ids), lanes%len(ids)
	held := make(map[string]int, len(ids))
	for _, p := range rankPairs(lanes, ids) {
		switch {
		case owners[p.lane] != "" || held[p.id] > share:
			continue
		case held[p.id] == share && extra == 0:
			continue
		case held[p.id] == share:
			extra--
		}
		owners[p.lane] = p.id
		held[p.id]++
	}
	return owners
}

type lanePair struct {
	lane  int
	id    string
	score uint64
}

// rankPairs returns all pairs, the highest score first. Scores are part of what processes
// of different versions have to agree on.
func rankPairs(lanes int, ids []string) []lanePair {
	pairs := make([]lanePair, 0, lanes*len(ids))
	for lane := range lanes {
		for _, id := range ids {
			pairs = append(pairs, lanePair{lane, id, pairScore(lane, id)})
		}
	}
	slices.SortFunc(pairs, func(a, b lanePair) int {
		return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(a.lane, b.lane), cmp.Compare(a.id, b.id))
	})
	return pairs
}

// pairScore is fnv64a(lane, "/", id), stirred by the finalizer of MurmurHash3: FNV alone
// leaves ids that differ in their last character too much alike.
func pairScore(lane int, id string) uint64 {
	const offset, prime = 14695981039346656037, 1099511628211
	h := uint64(offset)
	for _, c := range []byte(strconv.Itoa(lane) + "/" + id) {
		h = (h ^ uint64(c)) * prime
	}
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
