package pipeline

import (
	"hash/maphash"
	"sync"
)

// maxKnownKeys bounds what a store remembers of keys: 16 bytes or so of each. Beyond it all are forgotten.
const maxKnownKeys = 1 << 16

// knownKeys are the keys that a store knows to have heads, by their hashes. It may be wrong either
// way: a new key that it takes for known ends the flush with an error that says so, and one that it
// does not know costs a statement that finds nothing to do.
type knownKeys struct {
	seed maphash.Seed

	mu     sync.Mutex
	hashes map[uint64]struct{}
}

func newKnownKeys() *knownKeys {
	return &knownKeys{seed: maphash.MakeSeed(), hashes: map[uint64]struct{}{}}
}

func (k *knownKeys) hash(key *flushKey) uint64 {
	return maphash.String(k.seed, key.source)*31 + maphash.String(k.seed, key.typ)
}

// unknown returns those of the keys that are not known.
func (k *knownKeys) unknown(keys []flushKey) (unknown []flushKey) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range keys {
		if _, known := k.hashes[k.hash(&keys[i])]; !known {
			unknown = append(unknown, keys[i])
		}
	}
	return unknown
}

// add notes keys whose heads are committed.
func (k *knownKeys) add(keys []flushKey) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.hashes)+len(keys) > maxKnownKeys {
		clear(k.hashes)
	}
	for i := range keys {
		k.hashes[k.hash(&keys[i])] = struct{}{}
	}
}

// forget takes keys out.
func (k *knownKeys) forget(keys []flushKey) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range keys {
		delete(k.hashes, k.hash(&keys[i]))
	}
}
