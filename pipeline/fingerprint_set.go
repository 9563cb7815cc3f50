package pipeline

import (
	"math/bits"
	"math/rand/v2"
	"time"
)

const (
	// slotBytes is what one place of a table takes; maxLoad of them, in percent, are taken
	// before it is swept or grows.
	slotBytes = 12
	maxLoad   = 80
	// The set consists of tables that grow and are swept by themselves, so that neither takes
	// long, or much memory at a time.
	setShards  = 64
	firstSlots = 32
	// A generation closes after a quarter of the window, or when it has an eighth of the
	// entries that there is room for. So there are never more than 14 at a time.
	setQuarters = 4
	setEighths  = 8
	// The number of a generation takes the upper 4 bits of an entry.
	genShift = 28
	genCount = 1 << 4
	genMask  = (genCount - 1) << genShift
)

// minDedupeBytes is the least that is worth having: 50,000 events.
const minDedupeBytes = 1 << 20

// fingerprintSet is an exact set of fingerprints (of their first 92 bits), bounded in bytes
// and in time. It keeps what was added within the window, or the newest of them, at least
// capacity(), whichever are fewer. Each entry belongs to a generation; the oldest one is
// dropped as a whole, and its entries are swept away where their place is needed. It belongs
// to one goroutine.
type fingerprintSet struct {
	window   time.Duration
	maxBytes int
	maxSlots int    // of a shard
	seed     uint64 // odd: nobody outside can choose who shares a place
	shards   [setShards]fingerprintShard

	gens  []fingerprintGen // those that live, from the oldest to the open one
	next  uint32           // number of the next one
	live  [genCount]bool
	count [genCount]int // entries by generation, those of dropped ones included
	lost  time.Time     // the newest entry that was dropped for want of room
}

// fingerprintShard is a hash table with open addressing and linear probing.
type fingerprintShard struct {
	low  []uint64 // 0: the place is free
	high []uint32 // the generation in the upper bits
	used int      // entries of dropped generations included
}

type fingerprintGen struct {
	number         uint32
	opened, newest time.Time // the first entry, and the last
}

// newFingerprintSet returns an empty set that takes maxBytes at most.
func newFingerprintSet(window time.Duration, maxBytes int) *fingerprintSet {
	return &fingerprintSet{
		window: window, maxBytes: maxBytes, seed: rand.Uint64() | 1,
		maxSlots: max(maxBytes/setShards/slotBytes, firstSlots),
	}
}

// limit is how many entries a table of the given size takes.
func limit(slots int) int { return slots * maxLoad / 100 }

// capacity is how many entries it keeps at least, if they are no older than the window: two
// eighths may go at a time, and not all shards are equally full.
func (s *fingerprintSet) capacity() int {
	return setShards * limit(s.maxSlots) * (setEighths - 2) / setEighths * 98 / 100
}

// len is how many entries it has.
func (s *fingerprintSet) len() int {
	n := 0
	for _, g := range s.gens {
		n += s.count[g.number]
	}
	return n
}

// bytes is what its tables take.
func (s *fingerprintSet) bytes() int {
	n := 0
	for i := range s.shards {
		n += slotBytes * len(s.shards[i].low)
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

// has reports whether f was added and not dropped.
func (s *fingerprintSet) has(f Fingerprint) bool {
	shard, hash := s.shardOf(f)
	at, found := shard.find(f, hash)
	return found && s.live[shard.high[at]>>genShift]
}

// shardOf returns the table of f, and its hash within that.
func (s *fingerprintSet) shardOf(f Fingerprint) (*fingerprintShard, uint64) {
	hash := f.low() * s.seed
	return &s.shards[hash>>32%setShards], hash
}

// place is where to look first in a table of the given size.
func place(hash uint64, slots int) int {
	at, _ := bits.Mul64(hash, uint64(slots))
	return int(at)
}

// find returns where f is, or where it would be put; at is 0 in a table without places.
func (t *fingerprintShard) find(f Fingerprint, hash uint64) (at int, found bool) {
	if len(t.low) == 0 {
		return 0, false
	}
	low, high := f.low(), f.high()&^genMask
	for at = place(hash, len(t.low)); t.low[at] != 0; {
		if t.low[at] == low && t.high[at]&^genMask == high {
			return at, true
		}
		if at++; at == len(t.low) {
			at = 0
		}
	}
	return at, false
}

// add puts f in as of the given time, which is not before that of earlier ones, and reports
// whether it is new. One that is there already stays in its generation.
func (s *fingerprintSet) add(f Fingerprint, at time.Time) bool {
	shard, hash := s.shardOf(f)
	i, found := shard.find(f, hash)
	if found && s.live[shard.high[i]>>genShift] {
		return false
	}
	gen := s.open(at)
	if shard.used >= limit(len(shard.low)) {
		s.makeRoom(shard)
		found = false // it was of a dropped generation and is swept away, as far as it was there
	}
	i, found = shard.find(f, hash) // opening and making room move entries
	if found {
		s.count[shard.high[i]>>genShift]--
	} else {
		shard.used++
	}
	shard.low[i], shard.high[i] = f.low(), f.high()&^genMask|gen<<genShift
	s.count[gen]++
	return true
}

// open returns the generation of what is added at the given time.
func (s *fingerprintSet) open(at time.Time) uint32 {
	if n := len(s.gens); n > 0 {
		g := &s.gens[n-1]
		if at.Sub(g.opened) <= s.window/setQuarters && s.count[g.number] < setShards*limit(s.maxSlots)/setEighths {
			if at.After(g.newest) {
				g.newest = at
			}
			return g.number
		}
	}
	s.expire(at)
	if len(s.gens) == genCount-1 {
		s.drop()
	}
	number := s.next
	s.next = (s.next + 1) % genCount
	if s.count[number] > 0 { // what an earlier one of this number left behind must not come back
		for i := range s.shards {
			s.rebuild(&s.shards[i], len(s.shards[i].low))
		}
	}
	s.gens = append(s.gens, fingerprintGen{number: number, opened: at, newest: at})
	s.live[number] = true
	return number
}

// expire drops what is older than the window at now.
func (s *fingerprintSet) expire(now time.Time) {
	for len(s.gens) > 0 && now.Sub(s.gens[0].newest) > s.window {
		s.forget()
	}
}

// drop drops the oldest generation for want of room.
func (s *fingerprintSet) drop() {
	s.lost = s.gens[0].newest
	s.forget()
}

func (s *fingerprintSet) forget() {
	s.live[s.gens[0].number] = false
	s.gens = append(s.gens[:0], s.gens[1:]...)
}

// makeRoom sweeps a full table, or lets it grow. At its full size an eighth of it must become
// free, at the cost of the oldest generations. The open one alone cannot fill it: it has at
// most an eighth of all entries, and they are spread by a number that nobody outside knows.
func (s *fingerprintSet) makeRoom(t *fingerprintShard) {
	s.rebuild(t, len(t.low))
	if t.used <= limit(len(t.low))*3/4 && len(t.low) > 0 {
		return
	}
	if len(t.low) < s.maxSlots {
		s.rebuild(t, min(max(2*len(t.low), firstSlots), s.maxSlots))
		return
	}
	for t.used > limit(len(t.low))*(setEighths-1)/setEighths && len(s.gens) > 1 {
		s.drop()
		s.rebuild(t, len(t.low))
	}
}

// rebuild puts the entries of a table that live into a table of the given size.
func (s *fingerprintSet) rebuild(t *fingerprintShard, slots int) {
	old := *t
	t.low, t.high, t.used = make([]uint64, slots), make([]uint32, slots), 0
	for i, low := range old.low {
		if low == 0 {
			continue
		}
		if gen := old.high[i] >> genShift; !s.live[gen] {
			s.count[gen]--
			continue
		}
		at := place(low*s.seed, slots)
		for t.low[at] != 0 {
			if at++; at == slots {
				at = 0
			}
		}
		t.low[at], t.high[at] = low, old.high[i]
		t.used++
	}
}
