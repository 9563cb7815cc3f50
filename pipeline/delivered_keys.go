package pipeline

import (
	"bytes"
	"hash/maphash"

	"google.golang.org/protobuf/encoding/protowire"
)

// keyOfEncoded returns the source and type of an event's encoding, of which they are parts;
// nil where it has none. Encoders write them first, so the rest is mostly not looked at.
func keyOfEncoded(event []byte) (source, typ []byte) {
	for len(event) > 0 && (source == nil || typ == nil) {
		number, kind, n := protowire.ConsumeTag(event)
		if n < 0 {
			return source, typ
		}
		event = event[n:]
		if kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, kind, event); n < 0 {
				return source, typ
			}
			event = event[n:]
			continue
		}
		content, n := protowire.ConsumeBytes(event)
		if n < 0 {
			return source, typ
		}
		switch number {
		case sourceField:
			source = content
		case typeField:
			typ = content
		}
		event = event[n:]
	}
	return source, typ
}

// seqnumKey is the key of the attribute that appendEvent puts at the end of an event.
var seqnumKey = append([]byte{entryKeyField<<3 | 2, byte(len(SeqnumAttribute))}, SeqnumAttribute...)

// seqnumOfEncoded returns the seqnum that appendEvent put at the end of an event, or 0.
func seqnumOfEncoded(event []byte) (seqnum int64) {
	// Tag and length of the value, tag and length of the text in it, the digits.
	const before = 4
	start := len(event)
	for scale := int64(1); start > 0 && event[start-1] >= '0' && event[start-1] <= '9'; scale *= 10 {
		if len(event)-start == 18 {
			return 0
		}
		start--
		seqnum += scale * int64(event[start]-'0')
	}
	digits := len(event) - start
	if digits == 0 || start < before+len(seqnumKey) || int(event[start-1]) != digits ||
		!bytes.Equal(event[start-before-len(seqnumKey):start-before], seqnumKey) {
		return 0
	}
	return seqnum
}

// lastSeqnums is how many keys a worker remembers the newest seqnum of.
const lastSeqnums = 1024

// orderWatch counts the events of a lane that a sink got after one of the same key with a higher
// seqnum. It remembers a bounded number of keys, by their hashes, and so may miss some. It belongs
// to one goroutine.
type orderWatch struct {
	seed maphash.Seed
	last []lastSeqnum // by hash
}

type lastSeqnum struct {
	key    uint64
	seqnum int64
}

func newOrderWatch() *orderWatch { return &orderWatch{seed: maphash.MakeSeed()} }

// behind takes note of a delivered event and reports whether it came after a later one.
func (o *orderWatch) behind(source, typ []byte, seqnum int64) bool {
	if seqnum == 0 {
		return false
	}
	if o.last == nil {
		o.last = make([]lastSeqnum, lastSeqnums)
	}
	key := maphash.Bytes(o.seed, source)*31 + maphash.Bytes(o.seed, typ)
	slot := &o.last[key%lastSeqnums]
	if slot.key == key && seqnum < slot.seqnum {
		return true
	}
	*slot = lastSeqnum{key, seqnum}
	return false
}

// count counts the events of a batch that a sink is done with.
func (s *sinkMetrics) count(b *Batch, refused []Refusal, order *orderWatch) {
	isRefused := make(map[int]bool, len(refused))
	for _, r := range refused {
		isRefused[r.Index] = true
	}
	inversions := int64(0)
	s.delivered.addBytes(func(yield func([]byte, []byte) bool) {
		for i, event := range b.Events {
			if isRefused[i] {
				continue
			}
			source, typ := keyOfEncoded(event)
			if order.behind(source, typ, seqnumOfEncoded(event)) {
				inversions++
			}
			if !yield(source, typ) {
				return
			}
		}
	})
	s.inverted(inversions)
	if len(refused) == 0 {
		return
	}
	s.refused.addBytes(func(yield func([]byte, []byte) bool) {
		for _, r := range refused {
			if !yield(keyOfEncoded(b.Events[r.Index])) {
				return
			}
		}
	})
}
