package pipeline

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
)

// flush is what goes into one transaction: events sorted into batches by lane, and the
// keys whose heads it moves.
type flush struct {
	events  []Event
	placed  []placement // of events[i]
	batches []flushBatch
	keys    []flushKey
	newKeys []flushKey // those of keys that may have no head yet
	taken   []takenRows
	seqnums []int64 // of events[i], filled in once the heads were moved
}

// placement says where an event of a flush goes.
type placement struct {
	batch int   // index into flush.batches
	index int   // within the batch
	key   int   // index into flush.keys
	nth   int64 // 0-based among the flush's events of its key
}

type flushBatch struct {
	lane    int
	token   uint64
	members []int // indexes into flush.events, in order
	bytes   int   // of encodings
	number  int64 // filled in by the transaction
}

type flushKey struct {
	source, typ string
	events      int64
}

type keyName struct{ source, typ string }

// newFlush sorts events into lanes and batches. A batch holds at most MaxBatchEvents
// events and, unless it holds one event only, maxBytes of message body.
func newFlush(events []Event, lanes, maxBytes int) (*flush, error) {
	f := &flush{events: events, placed: make([]placement, len(events)), seqnums: make([]int64, len(events))}
	open := make(map[int]int, lanes) // lane → its open batch
	keys := make(map[keyName]int)
	for i, e := range events {
		name := keyName{e.Source, e.Type}
		k, ok := keys[name]
		if !ok {
			k = len(f.keys)
			keys[name] = k
			f.keys = append(f.keys, flushKey{source: e.Source, typ: e.Type})
		}
		lane := LaneOf(e.Source, e.Type, lanes)
		size := len(e.Encoded) + maxEventOverhead
		b, ok := open[lane]
		if !ok || len(f.batches[b].members) == MaxBatchEvents || f.batches[b].bytes+size > maxBytes {
			b = len(f.batches)
			open[lane] = b
			f.batches = append(f.batches, flushBatch{lane: lane})
		}
		batch := &f.batches[b]
		f.placed[i] = placement{batch: b, index: len(batch.members), key: k, nth: f.keys[k].events}
		batch.members = append(batch.members, i)
		batch.bytes += size
		f.keys[k].events++
	}
	return f, f.drawTokens()
}

func (f *flush) drawTokens() error {
	random := make([]byte, 8*len(f.batches))
	if _, err := rand.Read(random); err != nil {
		return fmt.Errorf("draw batch tokens: %w", err)
	}
	for i := range f.batches {
		f.batches[i].token = binary.LittleEndian.Uint64(random[8*i:])
	}
	return nil
}

// numberEvents gives each event its seqnum from the heads, which hold the last one given
// out per key.
func (f *flush) numberEvents(heads []int64) {
	for i, p := range f.placed {
		f.seqnums[i] = heads[p.key] - f.keys[p.key].events + 1 + p.nth
	}
}

// body builds the message body of a batch.
func (f *flush) body(b *flushBatch) []byte {
	body := make([]byte, 0, b.bytes)
	for _, i := range b.members {
		body = appendEvent(body, f.events[i].Encoded, f.seqnums[i])
	}
	return body
}
