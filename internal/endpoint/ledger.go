package endpoint

import (
	"cmp"
	"hash/maphash"
	"os"
	"slices"
	"sync"
	"time"
)

// maxKeys bounds the keys that are counted apart. Events of further ones are kept as
// records and counted in the totals, without their order being checked.
const maxKeys = 100_000

const (
	// maxReplays bounds the names of replays that are kept. What comes of further ones has
	// otherReplay in its record, which no replay can be named.
	maxReplays  = 10_000
	otherReplay = "…"
)

// Record is one event that the endpoint took.
type Record struct {
	// N counts the events taken, from 1.
	N          int64     `json:"n"`
	Source     string    `json:"source"`
	Type       string    `json:"type"`
	ID         string    `json:"id"`
	Seqnum     int64     `json:"seqnum"` // 0: the event has none
	ReceivedAt time.Time `json:"received_at"`
	// DataCRC32C is the Castagnoli CRC-32 of the data's bytes; 0 where there are none.
	DataCRC32C uint32 `json:"data_crc32c"`
	// ReplayID is the extension replayid, which what a replay delivers has.
	ReplayID string `json:"replayid,omitempty"`
}

// KeyStats counts the events of one (source, type).
type KeyStats struct {
	Source   string `json:"source"`
	Type     string `json:"type"`
	Received int64  `json:"received"`
	// Doubles are events whose (source, id) is among the records kept when they came.
	Doubles int64 `json:"doubles"`
	// Inversions are events that are no doubles and came after one with a higher seqnum.
	Inversions int64 `json:"inversions"`
	// HighestSeqnum: where it equals Received less Doubles, nothing is missing.
	HighestSeqnum int64 `json:"highest_seqnum"`
}

// Stats are the counts since the start or the last reset.
type Stats struct {
	Calls      int64 `json:"calls"` // of Publish and PublishBatch, and messages of StreamEvents
	Received   int64 `json:"received"`
	Doubles    int64 `json:"doubles"`
	Inversions int64 `json:"inversions"`
	Refused    int64 `json:"refused"`
	// Kept records can be read back; Received less Kept made room for newer ones.
	Kept int64 `json:"kept"`
	// Untracked events belong to keys beyond the number that is counted apart.
	Untracked int64 `json:"untracked"`
	// Keys are sorted by source and type.
	Keys []KeyStats `json:"keys"`
}

// ledger keeps the newest records and counts what came.
type ledger struct {
	seed maphash.Seed
	max  int

	mu   sync.Mutex // guards all below
	file *os.File   // nil: none
	// ring holds the newest records; it grows to max, then the oldest is overwritten.
	// The record with number n is at (n-1) mod max.
	ring  []record
	seen  map[uint64]uint32 // how many kept records have a (source, id), by its hash
	keys  map[keyName]*KeyStats
	total Stats // without Keys and Kept
	// replays are the names of replays, by the numbers that records have of them; that of 0 is empty.
	replays   []string
	replaysBy map[string]uint32
}

// record is a Record at half its size: 2 million of them, with ids of 36 bytes and
// their share of seen, take about 250 MB.
type record struct {
	key        *KeyStats
	id         string
	seqnum     int64
	receivedAt int64 // Unix nanoseconds
	checksum   uint32
	replay     uint32 // number of its name
}

type keyName struct{ source, typ string }

func newLedger(maxRecords int) *ledger {
	l := &ledger{seed: maphash.MakeSeed(), max: maxRecords}
	l.reset()
	return l
}

func (l *ledger) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ring = nil
	l.seen = make(map[uint64]uint32)
	l.keys = make(map[keyName]*KeyStats)
	l.total = Stats{}
	l.replays, l.replaysBy = []string{""}, map[string]uint32{"": 0}
}

// called counts one call that refused some events.
func (l *ledger) called(refused int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total.Calls++
	l.total.Refused += int64(refused)
}

// add records events in the order in which they came. It fails where they cannot be
// written to the file; then none is recorded.
func (l *ledger) add(events []Record) error {
	now := time.Now().UnixNano()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.write(events, now); err != nil {
		return err
	}
	for _, e := range events {
		l.addOne(e, now)
	}
	return nil
}

func (l *ledger) addOne(e Record, now int64) {
	key := l.key(e.Source, e.Type)
	hash := l.hash(e.Source, e.ID)
	l.total.Received++
	key.Received++
	switch {
	case l.seen[hash] > 0:
		l.total.Doubles++
		key.Doubles++
	case e.Seqnum > 0 && e.Seqnum < key.HighestSeqnum:
		l.total.Inversions++
		key.Inversions++
	}
	key.HighestSeqnum = max(key.HighestSeqnum, e.Seqnum)
	l.keep(record{key: key, id: e.ID, seqnum: e.Seqnum, receivedAt: now, checksum: e.DataCRC32C, replay: l.replay(e.ReplayID)}, hash)
}

// replay returns the number of a replay's name.
func (l *ledger) replay(name string) uint32 {
	n, ok := l.replaysBy[name]
	if !ok && len(l.replays) > maxReplays {
		name = otherReplay
		n, ok = l.replaysBy[name]
	}
	if !ok {
		n = uint32(len(l.replays))
		l.replays, l.replaysBy[name] = append(l.replays, name), n
	}
	return n
}

// key returns the counts of a key, or counts that nobody reads once there are too many.
func (l *ledger) key(source, typ string) *KeyStats {
	name := keyName{source, typ}
	if key, ok := l.keys[name]; ok {
		return key
	}
	key := &KeyStats{Source: source, Type: typ}
	if len(l.keys) < maxKeys {
		l.keys[name] = key
	} else {
		l.total.Untracked++
	}
	return key
}

func (l *ledger) keep(r record, hash uint64) {
	l.seen[hash]++
	if len(l.ring) < l.max {
		l.ring = append(l.ring, r)
		return
	}
	at := (l.total.Received - 1) % int64(l.max)
	oldest := l.ring[at]
	l.ring[at] = r
	old := l.hash(oldest.key.Source, oldest.id)
	if l.seen[old]--; l.seen[old] == 0 {
		delete(l.seen, old)
	}
}

// hash identifies an event: two of two million share one with a probability of 1 in
// ten million.
func (l *ledger) hash(source, id string) uint64 {
	var h maphash.Hash
	h.SetSeed(l.seed)
	h.WriteString(source)
	h.WriteByte(0)
	h.WriteString(id)
	return h.Sum64()
}

// after returns up to limit of the kept records with numbers above n, oldest first.
func (l *ledger) after(n int64, limit int) []Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	first := max(n, l.total.Received-int64(len(l.ring)), 0)
	count := min(l.total.Received-first, int64(limit))
	if count <= 0 {
		return nil
	}
	records := make([]Record, 0, count)
	for n := first + 1; n <= first+count; n++ {
		r := l.ring[(n-1)%int64(l.max)]
		records = append(records, Record{
			N: n, Source: r.key.Source, Type: r.key.Type, ID: r.id, Seqnum: r.seqnum,
			ReceivedAt: time.Unix(0, r.receivedAt).UTC(), DataCRC32C: r.checksum,
			ReplayID: l.replays[r.replay],
		})
	}
	return records
}

func (l *ledger) stats(withKeys bool) Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	stats := l.total
	stats.Kept = int64(len(l.ring))
	if !withKeys {
		return stats
	}
	stats.Keys = make([]KeyStats, 0, len(l.keys))
	for _, key := range l.keys {
		stats.Keys = append(stats.Keys, *key)
	}
	slices.SortFunc(stats.Keys, func(a, b KeyStats) int {
		return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.Type, b.Type))
	})
	return stats
}
