package pipeline

import (
	"encoding/binary"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// testFingerprint is the n-th of a series that looks like hashes.
func testFingerprint(n uint64) Fingerprint {
	random := rand.New(rand.NewPCG(n, 1))
	var f Fingerprint
	binary.LittleEndian.PutUint64(f[:], random.Uint64()|1)
	binary.LittleEndian.PutUint32(f[8:], random.Uint32())
	return f
}

// The set against a map of when each was added: what it must have, it has; what was never
// added, or is too old, it has not.
func TestFingerprintSetIsExact(t *testing.T) {
	start := time.Now()
	rapid.Check(t, func(t *rapid.T) {
		window := time.Duration(rapid.IntRange(1, 1000).Draw(t, "window")) * time.Second
		s := newFingerprintSet(window, 1)
		s.maxSlots = rapid.SampledFrom([]int{100, 150}).Draw(t, "slots")
		now := start
		var order []Fingerprint // newest last, without repeats
		added := map[Fingerprint]time.Time{}
		next := uint64(0)
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, int(window/time.Second)/4+1).Draw(t, "pause")) * time.Second / 8)
			s.expire(now)
			for range rapid.IntRange(1, 1000).Draw(t, "events") {
				next++
				n := next
				if again := rapid.IntRange(0, 10_000).Draw(t, "again"); again < 500 {
					n = next * uint64(again) / 500
				}
				f := testFingerprint(n)
				if at, ok := added[f]; s.has(f) && (!ok || now.Sub(at) > 2*window) {
					t.Fatalf("has %x, added %v (%v)", f, now.Sub(at), ok)
				}
				if !s.has(f) {
					added[f] = now
					order = append(order, f)
				}
				s.add(f, now)
			}
			mustHaveNewest(t, s, order, added, now)
		}
		if s.len() > setShards*s.maxSlots || s.bytes() > setShards*s.maxSlots*slotBytes {
			t.Fatalf("%d entries in %d bytes, with %d places", s.len(), s.bytes(), s.maxSlots)
		}
	})
}

// mustHaveNewest wants what was added within the window, as far back as the set says that it
// covers and for the newest half of capacity() in any case: so small a set is not filled evenly.
func mustHaveNewest(t *rapid.T, s *fingerprintSet, order []Fingerprint, added map[Fingerprint]time.Time, now time.Time) {
	seen := map[Fingerprint]bool{}
	for _, f := range slices.Backward(order) {
		if seen[f] {
			continue
		}
		seen[f] = true
		age := now.Sub(added[f])
		if wanted := len(seen) <= s.capacity()/2 && age <= s.window || age < s.covers(now); wanted && !s.has(f) {
			t.Fatalf("lacks %x, added %v ago, %d-th newest of %d; it covers %v", f, age, len(seen), s.capacity(), s.covers(now))
		}
	}
}

// A full set takes no more memory than it may, and 12 to 20 bytes for each entry.
func TestFingerprintSetMemory(t *testing.T) {
	const limit = 32 << 20
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s := newFingerprintSet(time.Hour, limit)
	now := time.Now()
	for n := range uint64(3 * s.capacity()) {
		s.add(testFingerprint(n), now)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	held := int(after.HeapAlloc) - int(before.HeapAlloc)
	if held > limit+1<<20 || s.bytes() > limit {
		t.Errorf("holds %d bytes, thereof %d in tables; the limit is %d", held, s.bytes(), limit)
	}
	if each := float64(limit) / float64(s.capacity()); each < 12 || each > 22 {
		t.Errorf("%.1f bytes for each of the %d entries that are kept at the least", each, s.capacity())
	}
	if each := float64(held) / float64(s.len()); each > 20 {
		t.Errorf("%.1f bytes for each of the %d entries", each, s.len())
	}
	if covers := s.covers(now.Add(time.Second)); covers != time.Second {
		t.Errorf("covers %v, though entries of a second ago were dropped", covers)
	}
	t.Logf("%d entries in %d bytes: %.1f each; at least %d are kept", s.len(), held, float64(held)/float64(s.len()), s.capacity())
	runtime.KeepAlive(s)
}

// README.md and docs/performance.md promise that an ingest remembers 1.6 million events unless it is
// told otherwise, in memory that its bound of 200 MiB has room for.
func TestDefaultDedupeBytes(t *testing.T) {
	if n := newFingerprintSet(DefaultDedupeWindow, DefaultDedupeBytes).capacity(); n < 1_600_000 || n > 1_700_000 {
		t.Errorf("keeps at least %d events in %d bytes; want 1.6 million", n, DefaultDedupeBytes)
	}
}

// The first event of a source and another one's attribute are two events, as are two sources.
func TestFingerprintsDiffer(t *testing.T) {
	seen := map[Fingerprint]bool{}
	for _, f := range []Fingerprint{
		newFingerprint("/a", fingerprintOfID, "1"), newFingerprint("/a", fingerprintOfAttribute, "1"),
		newFingerprint("/b", fingerprintOfID, "1"), newFingerprint("/a", fingerprintOfID, "2"),
		newFingerprint("/a1", fingerprintOfID, ""), newFingerprint("/", fingerprintOfID, "a1"),
	} {
		if seen[f] || f.low() == 0 {
			t.Errorf("%x is there twice, or no fingerprint", f)
		}
		seen[f] = true
	}
}

func BenchmarkFingerprintSet(b *testing.B) {
	s := newFingerprintSet(time.Hour, DefaultDedupeBytes)
	now := time.Now()
	for n := range uint64(s.capacity()) {
		s.add(testFingerprint(n), now)
	}
	fresh := make([]Fingerprint, 1<<16)
	for i := range fresh {
		fresh[i] = testFingerprint(uint64(1<<40 + i))
	}
	b.ResetTimer()
	for i := range b.N {
		if s.has(fresh[i%len(fresh)]) {
			b.Fatal("found what was not added")
		}
	}
}

func BenchmarkFingerprint(b *testing.B) {
	for b.Loop() {
		newFingerprint("/source/of/events", fingerprintOfID, "6f1e7c1a-98a2-4c21-a5b3-0b2b9b0f3a11")
	}
}
