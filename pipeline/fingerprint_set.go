package pipeline

import (
	"math/bits"
	"math/rand/v2"
	"time"
)

// A fingerprintSet has up to setGenerations generations: those that are full or old enough to
// be closed, and one that is open. Each is a quarter of the window, or of the room, whichever
// comes first.
const (
	setGenerations = 5
	setQuarters    = setGenerations - 1
	// slotBytes is what one place of a table takes; maxLoad of them, in percent, are taken
	// before it grows or closes.
	slotBytes = 12
	maxLoad   = 80
	// minSlots is the size that a generation begins with.
	minSlots = 1 << 10
)

// minDedupeBytes is room for the five smallest generations that are worth having.
const minDedupeBytes = 1 << 20

// fingerprintSet is an exact set of fingerprints, bounded in bytes and in time: the oldest
// generation is dropped as a whole. It keeps what was added within the window, or the newest
// capacity() of them, whichever are fewer. It belongs to one goroutine.
type fingerprintSet struct {
	maxBytes int
	window   time.Duration
	maxSlots int               // of a generation
	seed     uint64            // odd: nobody outside can choose who shares a place
	gens     []*fingerprintGen // from the oldest to the one that is open
	lost     time.Time         // the newest entry that was dropped for want of room
}

// fingerprintGen is a hash table with open addressing and linear probing.
type fingerprintGen struct {
	low    []uint64 // 0: the place is free
	high   []uint32
	used   int
	opened time.Time // not after any of its entries
	newest time.Time
}

// newFingerprintSet returns an empty set that takes maxBytes, and an eighth of that more
// while a table grows.
func newFingerprintSet(window time.Duration, maxBytes int) *fingerprintSet {
	return &fingerprintSet{
		maxBytes: maxBytes, window: window, maxSlots: max(maxBytes/setGenerations/slotBytes, minSlots), seed: rand.Uint64() | 1,
	}
}

// capacity is how many entries it keeps at least, if they are no older than the window.
func (s *fingerprintSet) capacity() int { return setQuarters * (s.maxSlots * maxLoad / 100) }

// len is how many entries it has.
func (s *fingerprintSet) len() int {
	n := 0
	for _, g := range s.gens {
		n += g.used
	}
	return n
}

// bytes is what its tables take.
func (s *fingerprintSet) bytes() int {
	n := 0
	for _, g := range s.gens {
		n += slotBytes * len(g.low)
	}
	return n
}

// covers is how far back it has everything at now: the window, or less.
func (s *fingerprintSet) covers(now time.Time) time.Duration {
	if s.lost.IsZero() {
		return s.window
	}
	return min(s.window, now.Sub(s.lost))
}

// place is where to look first in a table of the given size.
func (s *fingerprintSet) place(f Fingerprint, size int) int {
	at, _ := bits.Mul64(f.low()*s.seed, uint64(size))
	return int(at)
}

// has reports whether f was added and not dropped.
func (s *fingerprintSet) has(f Fingerprint) bool {
	for i := len(s.gens) - 1; i >= 0; i-- {
		if _, found := s.find(s.gens[i], f); found {
			return true
		}
	}
	return false
}

// find returns where f is, or where it would be put.
func (s *fingerprintSet) find(g *fingerprintGen, f Fingerprint) (at int, found bool) {
	low := f.low()
	for at = s.place(f, len(g.low)); g.low[at] != 0; {
		if g.low[at] == low && g.high[at] == f.high() {
			return at, true
		}
		if at++; at == len(g.low) {
			at = 0
		}
	}
	return at, false
}

// add puts f in as of the given time, which is not before that of earlier ones by more than
// the clock's own steps. One that is there already stays where it is.
func (s *fingerprintSet) add(f Fingerprint, at time.Time) {
	if s.has(f) {
		return
	}
	g := s.open(at)
	i, _ := s.find(g, f)
	g.low[i], g.high[i] = f.low(), f.high()
	g.used++
	if at.After(g.newest) {
		g.newest = at
	}
}

// open returns the generation that takes what is added at the given time, with a free place.
func (s *fingerprintSet) open(at time.Time) *fingerprintGen {
	if n := len(s.gens); n > 0 {
		g := s.gens[n-1]
		switch full := (g.used+1)*100 > maxLoad*len(g.low); {
		case at.Sub(g.opened) > s.window/setQuarters, full && len(g.low) == s.maxSlots:
		case full:
			s.grow(g)
			return g
		default:
			return g
		}
	}
	s.expire(at)
	if len(s.gens) == setGenerations {
		s.lost = s.gens[0].newest
		s.drop()
	}
	size := min(minSlots, s.maxSlots)
	g := &fingerprintGen{low: make([]uint64, size), high: make([]uint32, size), opened: at, newest: at}
	s.gens = append(s.gens, g)
	return g
}

// expire drops what is older than the window at now.
func (s *fingerprintSet) expire(now time.Time) {
	for len(s.gens) > 0 && now.Sub(s.gens[0].newest) > s.window {
		s.drop()
	}
}

func (s *fingerprintSet) drop() {
	copy(s.gens, s.gens[1:])
	s.gens[len(s.gens)-1] = nil
	s.gens = s.gens[:len(s.gens)-1]
}

// grow doubles a table, up to the limit.
func (s *fingerprintSet) grow(g *fingerprintGen) {
	size := min(2*len(g.low), s.maxSlots)
	old := *g
	g.low, g.high = make([]uint64, size), make([]uint32, size)
	for i, low := range old.low {
		if low == 0 {
			continue
		}
		at, _ := bits.Mul64(low*s.seed, uint64(size))
		for g.low[at] != 0 {
			if at++; at == uint64(size) {
				at = 0
			}
		}
		g.low[at], g.high[at] = low, old.high[i]
	}
}
