package sinks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/metric"

	"github.com/waybillhq/waybill/pipeline"
)

func TestArchiveAppends(t *testing.T) {
	k := newArchiveKit(t)
	a, _ := k.archive()
	mustArchive(t, a, 3, batchOf(1, 2), batchOf(2, 1))
	mustArchive(t, a, 3, batchOf(3, 1))
	mustArchive(t, a, 14, batchOf(4, 1))
	k.wantIDs(3, "1.0", "1.1", "2.0", "3.0")
	k.wantIDs(14, "4.0")
	if got := k.keys(3); !slices.Equal(got, []int64{0, 3}) {
		t.Errorf("objects at %v, want 0 and 3", got)
	}
	if got := k.keys(3); k.reader().objects.key(3, got[1]) != "waybill/lane=03/00000000000000000003.ndjson.zst" {
		t.Errorf("key %s", k.reader().objects.key(3, got[1]))
	}
	record := k.records(3)[1]
	if record.Seqnum != 2 || record.Position != pipeline.Position(1, 1) || record.Source != "/tests" || record.Type != "test.made" {
		t.Errorf("record %+v", record)
	}
	if a.Name() != "archive" || a.Limits() != (pipeline.Limits{Events: 10_000, Bytes: 8 << 20, Linger: 10 * time.Second}) {
		t.Errorf("%s %+v", a.Name(), a.Limits())
	}
}

func TestArchiveDropsDuplicates(t *testing.T) {
	k := newArchiveKit(t)
	a, f := k.archive()
	one, two := batchOf(1, 2), batchOf(2, 1)
	mustArchive(t, a, 0, one, two, retransmitOf(one)) // queued twice, in one request
	puts := f.counted(http.MethodPut)
	mustArchive(t, a, 0, retransmitOf(two), one)
	if f.counted(http.MethodPut) != puts {
		t.Error("an object was written for batches that are archived")
	}
	mustArchive(t, a, 0, retransmitOf(one), batchOf(3, 1), two)
	reused := batchOf(1, 1) // the number once more, after a restore of Postgres
	reused.ID.Token++
	reused.Events[0] = encodedEvent("1.0 reused", 1)
	mustArchive(t, a, 0, reused)
	k.wantIDs(0, "1.0", "1.1", "2.0", "3.0", "1.0 reused")
}

func TestArchiveTakesWholeBatchesOnly(t *testing.T) {
	k := newArchiveKit(t)
	a, _ := k.archive()
	b, c := batchOf(1, 3), batchOf(2, 2)
	for name, items := range map[string][]pipeline.Item{
		"first part":   {{Batch: b, Index: 0}, {Batch: b, Index: 1}},
		"last part":    {{Batch: b, Index: 1}, {Batch: b, Index: 2}},
		"out of order": {{Batch: b, Index: 0}, {Batch: b, Index: 2}, {Batch: b, Index: 1}},
		"mixed":        {{Batch: c, Index: 0}, {Batch: b, Index: 0}, {Batch: c, Index: 1}},
		"too many":     {{Batch: c, Index: 0}, {Batch: c, Index: 1}, {Batch: c, Index: 2}},
	} {
		_, err := a.Send(t.Context(), 0, items)
		if err == nil || !strings.Contains(err.Error(), "whole batches") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(k.keys(0)) > 0 {
		t.Error("something was archived")
	}
	if results, err := a.Send(t.Context(), 0, nil); err != nil || len(results) > 0 {
		t.Errorf("no items: %v, %v", results, err)
	}
}

func TestArchiveRefusesMalformedEvents(t *testing.T) {
	k := newArchiveKit(t)
	a, _ := k.archive()
	b := batchOf(1, 3)
	b.Events[1] = []byte{0xff, 0xff}
	for range 2 { // the answer is the same when the batch comes again
		results, err := a.Send(t.Context(), 0, wholeBatches(b))
		mustNil(t, err)
		verdicts := []pipeline.Verdict{results[0].Verdict, results[1].Verdict, results[2].Verdict}
		if !slices.Equal(verdicts, []pipeline.Verdict{pipeline.Delivered, pipeline.Refused, pipeline.Delivered}) {
			t.Fatalf("verdicts %v", verdicts)
		}
		if results[1].Code != "MALFORMED_EVENT" || results[1].Reason == "" {
			t.Errorf("refusal %+v", results[1])
		}
	}
	k.wantIDs(0, "1.0", "1.2")
	mended := requeueOf(2, b, 1)
	mended.Events[0] = encodedEvent("1.1", 1)
	mustArchive(t, a, 0, mended)
	k.wantIDs(0, "1.0", "1.2", "1.1")
}

// TestArchiveTakeover has another process go on, with all kinds of cursors.
func TestArchiveTakeover(t *testing.T) {
	for name, cursors := range map[string]Cursors{
		"no cursors":     nil,
		"empty":          &hints{offsets: map[int]int64{}},
		"exact":          &hints{offsets: map[int]int64{0: 4}},
		"too low":        &hints{offsets: map[int]int64{0: 0}},
		"not a key":      &hints{offsets: map[int]int64{0: 3}},
		"beyond the end": &hints{offsets: map[int]int64{0: 1 << 40}},
		"at the end":     &hints{offsets: map[int]int64{0: 6}},
		"negative":       &hints{offsets: map[int]int64{0: -5}},
		"highest":        &hints{offsets: map[int]int64{0: math.MaxInt64}},
		"broken":         &hints{err: errors.New("no store of cursors")},
	} {
		t.Run(name, func(t *testing.T) {
			k := newArchiveKit(t)
			first, _ := k.archive()
			for n := range int64(3) {
				mustArchive(t, first, 0, batchOf(n+1, 2))
			}
			second, _ := k.archive(func(c *ArchiveConfig) { c.Cursors = cursors; c.Log = slog.New(slog.DiscardHandler) })
			mustArchive(t, second, 0, batchOf(2, 2), batchOf(3, 2), batchOf(4, 1))
			k.wantIDs(0, "1.0", "1.1", "2.0", "2.1", "3.0", "3.1", "4.0")
			mustArchive(t, first, 0, batchOf(5, 1), batchOf(4, 1)) // a zombie
			k.wantIDs(0, "1.0", "1.1", "2.0", "2.1", "3.0", "3.1", "4.0", "5.0")
		})
	}
}

func TestArchiveStoresCursors(t *testing.T) {
	k := newArchiveKit(t)
	cursors := &hints{offsets: map[int]int64{}}
	a, _ := k.archive(func(c *ArchiveConfig) { c.Cursors = cursors })
	mustArchive(t, a, 2, batchOf(1, 3))
	mustArchive(t, a, 2, batchOf(2, 1)) // too soon for another
	if got := cursors.offsets; len(got) != 1 || got[2] != 0 {
		t.Errorf("cursors %v", got)
	}
	a.lane(2).hinted = time.Time{}
	mustArchive(t, a, 2, batchOf(3, 1))
	if got := cursors.offsets[2]; got != 4 {
		t.Errorf("cursor at %d, want 4", got)
	}
}

// TestArchiveIdleLane has somebody else write, and a rule delete, while a lane is idle: the
// key that this process would write next is free again then.
func TestArchiveIdleLane(t *testing.T) {
	k := newArchiveKit(t)
	a, _ := k.archive()
	mustArchive(t, a, 0, batchOf(1, 1))
	other, _ := k.archive()
	mustArchive(t, other, 0, batchOf(2, 1))
	mustArchive(t, other, 0, batchOf(3, 1))
	k.remove(a.objects.key(0, 0))
	k.remove(a.objects.key(0, 1))
	a.lane(0).used = time.Now().Add(-laneIdle)
	mustArchive(t, a, 0, batchOf(4, 1))
	if got := k.keys(0); !slices.Equal(got, []int64{2, 3}) {
		t.Errorf("objects at %v, want 2 and 3", got)
	}
}

// TestArchiveCrashes loses each request of a Send in turn, before or after it reached the
// server, and then has this or another process go on with a larger merge.
func TestArchiveCrashes(t *testing.T) {
	for _, what := range []fault{loseBefore, loseAfter} {
		for step := range 4 {
			for _, takeover := range []bool{false, true} {
				t.Run(fmt.Sprintf("fault %d step %d takeover %t", what, step, takeover), func(t *testing.T) {
					testArchiveCrash(t, what, step, takeover)
				})
			}
		}
	}
}

func testArchiveCrash(t *testing.T, what fault, step int, takeover bool) {
	k := newArchiveKit(t)
	before, _ := k.archive()
	mustArchive(t, before, 0, batchOf(1, 2))
	a, f := k.archive()
	requests := 0 // of one Send: LIST, GET, PUT
	f.set(func(*http.Request) fault {
		requests++
		if requests == step+1 {
			return what
		}
		return pass
	})
	err := tryArchive(t.Context(), a, 0, batchOf(1, 2), batchOf(2, 2))
	if (err == nil) != (step == 3) {
		t.Fatalf("with request %d lost Send returned %v", step, err)
	}
	f.set(func(*http.Request) fault { return pass })
	if takeover {
		a, _ = k.archive()
	}
	mustArchive(t, a, 0, batchOf(1, 2), batchOf(2, 2), batchOf(3, 1))
	k.wantIDs(0, "1.0", "1.1", "2.0", "2.1", "3.0")
}

// TestArchiveOwnRetry loses an answer inside the client's own retries, so that the client
// meets its own object.
func TestArchiveOwnRetry(t *testing.T) {
	k := newArchiveKit(t)
	client, f := k.client(testS3.Endpoint, 3)
	a := k.archiveWith(client)
	lost := false
	f.set(func(r *http.Request) fault {
		if r.Method == http.MethodPut && !lost {
			lost = true
			return loseAfter
		}
		return pass
	})
	mustArchive(t, a, 0, batchOf(1, 2))
	mustArchive(t, a, 0, batchOf(2, 2))
	k.wantIDs(0, "1.0", "1.1", "2.0", "2.1")
	if !lost || f.counted(http.MethodPut) != 3 {
		t.Errorf("%d PUTs, want 3", f.counted(http.MethodPut))
	}
}

// TestArchiveRequeue has an event and its requeued copy come in both orders, in one
// request, in two, and after a takeover.
func TestArchiveRequeue(t *testing.T) {
	original := func() *pipeline.Batch { return batchOf(1, 3) }
	for name, tc := range map[string]struct {
		sends [][]*pipeline.Batch
		want  []string
	}{
		"requeued after": {
			sends: [][]*pipeline.Batch{{original()}, {requeueOf(5, original(), 1)}, {original()}},
			want:  []string{"1.0", "1.1", "1.2"},
		},
		"requeued before": {
			sends: [][]*pipeline.Batch{{requeueOf(5, original(), 1)}, {original()}, {requeueOf(5, original(), 1)}, {original()}},
			want:  []string{"1.1", "1.0", "1.2"},
		},
		"requeued twice": {
			sends: [][]*pipeline.Batch{{requeueOf(5, original(), 1)}, {requeueOf(6, original(), 1)}, {requeueOf(7, original(), 2)}, {original()}},
			want:  []string{"1.1", "1.2", "1.0"},
		},
		"requeued again after the rest": {
			sends: [][]*pipeline.Batch{{requeueOf(5, original(), 1)}, {original()}, {requeueOf(6, original(), 1)}},
			want:  []string{"1.1", "1.0", "1.2"},
		},
		"all requeued": {
			sends: [][]*pipeline.Batch{{requeueOf(5, original(), 0), requeueOf(6, original(), 1), requeueOf(7, original(), 2)}, {original()}},
			want:  []string{"1.0", "1.1", "1.2"},
		},
		"in one request": {
			sends: [][]*pipeline.Batch{{requeueOf(5, original(), 1), original(), requeueOf(6, original(), 2), requeueOf(7, original(), 1)}},
			want:  []string{"1.1", "1.0", "1.2"},
		},
	} {
		for _, takeover := range []bool{false, true} {
			for _, bound := range []int{1, 1000} {
				t.Run(fmt.Sprintf("%s, takeover %t, bound %d", name, takeover, bound), func(t *testing.T) {
					k := newArchiveKit(t)
					a, _ := k.archive(func(c *ArchiveConfig) { c.RememberedBatches = bound })
					want := slices.Clone(tc.want)
					for i, send := range tc.sends {
						mustArchive(t, a, 0, send...)
						later := batchOf(int64(100+i), 1) // so that the walk back meets others
						mustArchive(t, a, 0, later)
						if takeover {
							a, _ = k.archive(func(c *ArchiveConfig) { c.RememberedBatches = bound })
						}
					}
					got := slices.DeleteFunc(idsOf(k.records(0)), func(id string) bool { return strings.HasPrefix(id, "10") })
					if !slices.Equal(got, want) {
						t.Errorf("the lane holds %q, want %q", got, want)
					}
				})
			}
		}
	}
}

// A requeued event may come in another lane than the one it was in, which is no more: the archive
// finds it there, however far back.
func TestArchiveRequeueInAnotherLane(t *testing.T) {
	k := newArchiveKit(t)
	original, unknown := batchOf(1, 3), batchOf(2, 2)
	a, _ := k.archive()
	mustArchive(t, a, 13, original)
	for i := range 10 {
		mustArchive(t, a, 13, batchOf(int64(10+i), 1))
	}
	moved := func(number int64, b *pipeline.Batch, index, lane int) *pipeline.Batch {
		r := requeueOf(number, b, index)
		r.OriginLane = lane
		return r
	}
	for range 2 { // a takeover, and once more
		a, _ = k.archive()
		mustArchive(t, a, 1, moved(50, original, 1, 13), moved(51, unknown, 0, 13), moved(52, original, 2, 13), moved(53, unknown, 1, 14))
	}
	k.wantIDs(1, "2.0", "2.1")
	if n := len(k.records(13)); n != 13 {
		t.Errorf("the old lane has %d events, want 13", n)
	}
}

func idsOf(records []Record) []string {
	ids := make([]string, len(records))
	for i, record := range records {
		ids[i] = record.ID
	}
	return ids
}

// TestArchiveFloor checks that what memory no longer holds is found in the bucket, and
// that batches accepted lately cost no request.
func TestArchiveFloor(t *testing.T) {
	k := newArchiveKit(t)
	a, f := k.archive(func(c *ArchiveConfig) { c.RememberedBatches = 5 })
	const batches = 40
	for n := range int64(batches) {
		mustArchive(t, a, 0, batchOf(n+1, 1))
	}
	if l := a.lane(0); len(l.covered) != 5 || l.batches != 5 || len(l.set.ids) != 5 || l.floor != archiveTime(epoch.Add(35*time.Second)) {
		t.Errorf("memory holds %d objects, %d batches, %d ids, floor %d", len(l.covered), l.batches, len(l.set.ids), l.floor)
	}
	gets, puts := f.counted(http.MethodGet), f.counted(http.MethodPut)
	for _, n := range []int64{36, 40, 38} {
		mustArchive(t, a, 0, retransmitOf(batchOf(n, 1)))
	}
	if f.counted(http.MethodGet) != gets {
		t.Errorf("%d GETs for batches in memory", f.counted(http.MethodGet)-gets)
	}
	for _, n := range []int64{35, 1, 20, 7} {
		mustArchive(t, a, 0, retransmitOf(batchOf(n, 1)))
	}
	if f.counted(http.MethodPut) != puts {
		t.Error("an archived batch was appended again")
	}
	late := batchOf(50, 1) // accepted early and never archived
	late.AcceptedAt = epoch.Add(3 * time.Second)
	mustArchive(t, a, 0, late)
	mustArchive(t, a, 0, retransmitOf(late))
	if got := len(k.records(0)); got != batches+1 {
		t.Errorf("the lane holds %d events, want %d", got, batches+1)
	}
}

// TestArchiveCoversWhatItReads checks that a walk back is not repeated when memory has
// room for what it found.
func TestArchiveCoversWhatItReads(t *testing.T) {
	k := newArchiveKit(t)
	first, _ := k.archive()
	for n := range int64(30) {
		mustArchive(t, first, 0, batchOf(n+1, 1+int(n%3)))
	}
	a, f := k.archive()
	mustArchive(t, a, 0, retransmitOf(batchOf(10, 1)))
	gets := f.counted(http.MethodGet)
	if gets > 40 {
		t.Errorf("%d GETs to walk over 20 objects", gets)
	}
	for n := int64(10); n <= 30; n++ {
		mustArchive(t, a, 0, retransmitOf(batchOf(n, 1+int((n-1)%3))))
	}
	if got := f.counted(http.MethodGet); got != gets {
		t.Errorf("%d GETs for what was read before", got-gets)
	}
	if got := len(k.keys(0)); got != 30 {
		t.Errorf("%d objects, want 30", got)
	}
}

// TestArchiveRace has four processes append overlapping batches to one lane, with lost
// requests and answers, restarts, requeued events and a memory that is too small.
func TestArchiveRace(t *testing.T) {
	k := newArchiveKit(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	batches := raceBatches(rand.New(rand.NewPCG(seed, 0)))
	var group sync.WaitGroup
	for worker := range uint64(4) {
		group.Go(func() { raceWorker(t, k, batches, rand.New(rand.NewPCG(seed, worker+1))) })
	}
	group.Wait()
	seen := make(map[string]int)
	for _, record := range k.records(0) {
		seen[record.ID]++
	}
	for _, b := range batches {
		for i := range b.Events {
			id, err := idOf(b.Events[i])
			mustNil(t, err)
			if seen[id] != 1 {
				t.Errorf("event %s of batch %v is archived %d times", id, b.ID, seen[id])
			}
		}
	}
}

// raceBatches are accepted in an order that has little to do with their numbers; some are
// requeued events of others.
func raceBatches(random *rand.Rand) []*pipeline.Batch {
	var batches []*pipeline.Batch
	for n := range int64(80) {
		if n%6 == 5 {
			of := batches[random.IntN(len(batches))]
			if of.Origin == nil {
				batches = append(batches, requeueOf(n+1, of, random.IntN(len(of.Events))))
				continue
			}
		}
		b := batchOf(n+1, 1+random.IntN(5))
		b.AcceptedAt = epoch.Add(time.Duration(n+random.Int64N(20)) * time.Second)
		batches = append(batches, b)
	}
	return batches
}

// raceWorker sends every batch at least once, in runs that start a little before the end
// of the last one, and again until they are delivered.
func raceWorker(t *testing.T, k *archiveKit, batches []*pipeline.Batch, random *rand.Rand) {
	start := func() *Archive {
		a, f := k.archive(func(c *ArchiveConfig) { c.RememberedBatches = 15 })
		var mu sync.Mutex
		f.set(func(r *http.Request) fault {
			mu.Lock()
			defer mu.Unlock()
			if random.IntN(12) == 0 {
				return loseBefore + fault(random.IntN(2))
			}
			return pass
		})
		return a
	}
	a := start()
	failures := 0
	for from := 0; from < len(batches); {
		first := max(0, from-random.IntN(8))
		to := min(len(batches), from+1+random.IntN(6))
		run := slices.Clone(batches[first:to])
		random.Shuffle(len(run), func(i, j int) { run[i], run[j] = run[j], run[i] })
		if random.IntN(15) == 0 {
			a = start() // killed, or the lease went to and fro
		}
		err := tryArchive(t.Context(), a, 0, run...)
		if err == nil {
			from, failures = to, 0
		} else if failures++; failures > 300 {
			t.Errorf("no progress: %v", err)
			return
		}
	}
}

func idOf(encoded []byte) (string, error) {
	var e lineEncoder
	err := e.parse(encoded)
	return string(e.id), err
}

// TestArchiveDamage puts something that the archive did not write where it needs to read
// or write. It must neither be passed over nor overwritten.
func TestArchiveDamage(t *testing.T) {
	whole := func(k *archiveKit, offset int64) []byte {
		data, _, err := k.reader().objects.get(t.Context(), k.reader().objects.key(0, offset), "")
		mustNil(t, err)
		return data
	}
	cut := func(k *archiveKit) []byte { d := whole(k, 2); return d[:len(d)-1] }
	flip := func(k *archiveKit) []byte { d := whole(k, 2); d[len(d)-frameTrailerSize-3] ^= 1; return d }
	magic := func(k *archiveKit) []byte {
		d := whole(k, 2)
		size, err := frameSize(d)
		mustNil(t, err)
		d[len(d)-size] ^= 1
		return d
	}
	long := func(k *archiveKit) []byte { d := whole(k, 2); d[len(d)-frameTrailerSize+1] = 0xff; return d }
	for name, body := range map[string]func(*archiveKit) []byte{
		"empty":             func(*archiveKit) []byte { return nil },
		"text":              func(*archiveKit) []byte { return []byte(strings.Repeat("not an archive object\n", 10)) },
		"cut off":           cut,
		"flipped bit":       flip,
		"no zstd frame":     magic,
		"endless frame":     long,
		"another's content": func(k *archiveKit) []byte { return whole(k, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			k := newArchiveKit(t)
			running, _ := k.archive()
			mustArchive(t, running, 0, batchOf(1, 2))
			mustArchive(t, running, 0, batchOf(2, 1))
			key := running.objects.key(0, 3)
			planted := body(k)
			k.plant(key, planted)
			wantError(t, tryArchive(t.Context(), running, 0, batchOf(3, 1)), key, "restore")
			fresh, _ := k.archive()
			wantError(t, tryArchive(t.Context(), fresh, 0, batchOf(3, 1)), key, "restore")
			if _, err := k.reader().End(t.Context(), 0); err == nil {
				t.Error("the reader finds an end")
			}
			if got := whole(k, 3); string(got) != string(planted) {
				t.Error("the object was overwritten")
			}
			k.remove(key)
			mustArchive(t, running, 0, batchOf(3, 1))
			k.wantIDs(0, "1.0", "1.1", "2.0", "3.0")
		})
	}
}

func TestArchiveForeignNames(t *testing.T) {
	for _, name := range []string{"_SUCCESS", "3.ndjson.zst", "00000000000000000003.ndjson.gz", "-0000000000000000001.ndjson.zst"} {
		k := newArchiveKit(t)
		key := "waybill/lane=00/" + name
		k.plant(key, []byte("x"))
		a, _ := k.archive()
		err := tryArchive(t.Context(), a, 0, batchOf(1, 1))
		if name[0] == '-' && err == nil {
			continue // below every offset: nobody meets it
		}
		wantError(t, err, key, "move it")
	}
}

// TestArchiveForksAreSeen has an object follow that continues another chain.
func TestArchiveForksAreSeen(t *testing.T) {
	k := newArchiveKit(t)
	a, _ := k.archive()
	mustArchive(t, a, 0, batchOf(1, 1))
	forged := archiveFrame{
		Offset: 1, Events: 1, Watermark: 7, Previous: 7, // not the watermark of the object before
		Entries: []archiveEntry{{ID: pipeline.BatchID{Number: 9, Token: 9}, Events: 1, Accepted: 7}},
	}
	k.plant(a.objects.key(0, 1), forged.append(a.encoder.EncodeAll([]byte("{}\n"), nil)))
	wantError(t, tryArchive(t.Context(), a, 0, batchOf(2, 1)), "does not follow")
}

// TestArchiveHole deletes an object from the middle: what it held counts as not archived.
func TestArchiveHole(t *testing.T) {
	k := newArchiveKit(t)
	first, _ := k.archive()
	for n := range int64(5) {
		mustArchive(t, first, 0, batchOf(n+1, 1))
	}
	k.remove(first.objects.key(0, 2))
	a, _ := k.archive()
	mustArchive(t, a, 0, retransmitOf(batchOf(1, 1)), retransmitOf(batchOf(3, 1)))
	var gap *ArchiveGapError
	for _, err := range k.reader().Records(t.Context(), 0, 0) {
		if err != nil && !errors.As(err, &gap) {
			t.Fatal(err)
		}
	}
	if gap == nil || gap.From != 2 || gap.To != 3 {
		t.Fatalf("gap %v", gap)
	}
	var rest []string
	for record, err := range k.reader().Records(t.Context(), 0, gap.To) {
		mustNil(t, err)
		rest = append(rest, record.ID)
	}
	if !slices.Equal(rest, []string{"4.0", "5.0", "3.0"}) {
		t.Errorf("after the gap: %q", rest)
	}
	wantError(t, gap, "from offset 2 to 2")
}

func TestArchiveStopsWithItsContext(t *testing.T) {
	k := newArchiveKit(t)
	a, f := k.archive()
	ctx, cancel := context.WithCancel(t.Context())
	f.set(func(*http.Request) fault { cancel(); return pass })
	if err := tryArchive(ctx, a, 0, batchOf(1, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("Send returned %v", err)
	}
	f.set(func(*http.Request) fault { return pass })
	mustArchive(t, a, 0, batchOf(1, 1))
}

// TestArchiveGivesUpOnAConflict has somebody else be first every time.
func TestArchiveGivesUpOnAConflict(t *testing.T) {
	k := newArchiveKit(t)
	a, f := k.archive()
	other, _ := k.archive()
	n := int64(10)
	f.set(func(r *http.Request) fault {
		if r.Method == http.MethodPut {
			n++
			mustArchive(t, other, 0, batchOf(n, 1))
		}
		return pass
	})
	wantError(t, tryArchive(t.Context(), a, 0, batchOf(1, 1)), "somebody else appended first")
	f.set(func(*http.Request) fault { return pass })
	mustArchive(t, a, 0, batchOf(1, 1))
	if got := len(k.records(0)); got != 1+appendAttempts {
		t.Errorf("%d events, want %d", got, 1+appendAttempts)
	}
}

// TestArchiveLongList has more batches in one object than the first GET of a list reads.
func TestArchiveLongList(t *testing.T) {
	k := newArchiveKit(t)
	var batches []*pipeline.Batch
	for n := range int64(9000) {
		batches = append(batches, batchOf(n+1, 1))
	}
	a, _ := k.archive()
	mustArchive(t, a, 0, batches...)
	b, f := k.archive()
	mustArchive(t, b, 0, batches[0], batches[8999])
	if got := f.counted(http.MethodGet); got != 3 { // LIST, the end of the object, the whole list
		t.Errorf("%d GETs, want 3", got)
	}
	if got := len(k.records(0)); got != 9000 {
		t.Errorf("%d events, want 9000", got)
	}
}

// TestArchiveEndOfALongLane finds the last of 300 objects where a LIST returns 20, as it
// would the last of 15,000 in production.
func TestArchiveEndOfALongLane(t *testing.T) {
	k := newArchiveKit(t)
	client, f := k.client(testS3.Endpoint, 3)
	objects := newArchiveObjects(client, k.bucket, "waybill", 10*time.Second)
	objects.page = 20
	var all []int64
	for n, offset := int64(0), int64(0); n < 300; n++ {
		mustNil(t, objects.put(t.Context(), objects.key(0, offset), []byte("x")))
		all = append(all, offset)
		offset += 1 + n*n%7*n%1000 // holes of any size, as objects leave them
	}
	want := all[len(all)-1]
	for name, hint := range map[string]int64{
		"none": 0, "low": all[10], "exact": want, "beyond": want + 1, "far beyond": math.MaxInt64, "between": want - 1,
	} {
		before := f.counted(http.MethodGet)
		got, ok, err := objects.last(t.Context(), 0, hint)
		if err != nil || !ok || got != want {
			t.Errorf("hint %s: last object at %d, %t, %v, want %d", name, got, ok, err, want)
		}
		if requests := f.counted(http.MethodGet) - before; requests > 20 {
			t.Errorf("hint %s: %d requests", name, requests)
		}
	}
	for i := 0; i < len(all); i += 23 {
		for _, count := range []int{1, 5} {
			got, err := objects.preceding(t.Context(), 0, all[i], count, int64(i))
			mustNil(t, err)
			if want := all[i-min(i, len(got)) : i]; !slices.Equal(got, want) || (i > 0 && len(got) == 0) || len(got) > count {
				t.Fatalf("%d before %d: %v, want %v", count, all[i], got, want)
			}
		}
	}
	for _, offset := range []int64{0, 1, 1 << 40, math.MaxInt64} { // lanes of one object
		lane := int(offset%97) + 1
		mustNil(t, objects.put(t.Context(), objects.key(lane, offset), []byte("x")))
		if got, ok, err := objects.last(t.Context(), lane, 5); err != nil || !ok || got != offset {
			t.Errorf("one object: %d, %t, %v, want %d", got, ok, err, offset)
		}
	}
}

func TestArchiveMetrics(t *testing.T) {
	k := newArchiveKit(t)
	reader := metric.NewManualReader()
	meter := metric.NewMeterProvider(metric.WithReader(reader)).Meter("test")
	a, _ := k.archive(func(c *ArchiveConfig) { c.Meter = meter })
	other, _ := k.archive()
	mustArchive(t, a, 0, batchOf(1, 2))
	mustArchive(t, other, 0, batchOf(2, 1))
	mustArchive(t, a, 0, batchOf(1, 2), batchOf(3, 1))
	for name, want := range map[string]int64{
		"waybill.sink.requests": 3, "waybill.archive.duplicates": 1, "waybill.archive.conflicts": 1,
	} {
		if got := mustSum(t, reader, name); got != want {
			t.Errorf("%s is %d, want %d", name, got, want)
		}
	}
}

func TestArchiveConfigErrors(t *testing.T) {
	for field, change := range map[string]func(*ArchiveConfig){
		"Name":              func(c *ArchiveConfig) { c.Name = "" },
		"Bucket":            func(c *ArchiveConfig) { c.Bucket = "" },
		"Prefix":            func(c *ArchiveConfig) { c.Prefix = "a//b" },
		"MaxObjectEvents":   func(c *ArchiveConfig) { c.MaxObjectEvents = 0 },
		"MaxObjectBytes":    func(c *ArchiveConfig) { c.MaxObjectBytes = 0 },
		"Linger":            func(c *ArchiveConfig) { c.Linger = -1 },
		"Timeout":           func(c *ArchiveConfig) { c.Timeout = 0 },
		"RememberedBatches": func(c *ArchiveConfig) { c.RememberedBatches = 0 },
		"Log":               func(c *ArchiveConfig) { c.Log = nil },
	} {
		cfg := DefaultArchiveConfig()
		cfg.Bucket, cfg.Log = "b", slog.New(slog.DiscardHandler)
		mustNil(t, cfg.Validate())
		change(&cfg)
		_, err := NewArchive(nil, cfg)
		wantError(t, err, "ArchiveConfig."+field)
	}
	cfg := DefaultArchiveConfig()
	cfg.Prefix = ""
	if got := newArchiveObjects(nil, "b", cfg.Prefix, 1).key(1, 2); got != "lane=01/00000000000000000002.ndjson.zst" {
		t.Errorf("key without a prefix: %s", got)
	}
	if text := cfg.LogValue().String(); !strings.Contains(text, "max_object_events=10000") {
		t.Errorf("logged as %s", text)
	}
}

func TestS3ConfigErrors(t *testing.T) {
	for field, change := range map[string]func(*S3Config){
		"Endpoint":  func(c *S3Config) { c.Endpoint = "localhost:9000" },
		"_ENDPOINT": func(c *S3Config) { c.Endpoint = "http://key:geheim@s3:9000" },
		"_SECRET_":  func(c *S3Config) { c.Endpoint = "http://key:geheim/x@s3:9000" },
		"Region":    func(c *S3Config) { c.Region = "" },
		"SecretKey": func(c *S3Config) { c.AccessKey = "a" },
		"Checksums": func(c *S3Config) { c.Checksums = "never" },
		"Isolated":  func(c *S3Config) { c.Isolated = true },
	} {
		cfg := DefaultS3Config()
		mustNil(t, cfg.Validate())
		change(&cfg)
		_, err := NewS3Client(t.Context(), cfg)
		wantError(t, err, "S3Config.", field)
		if strings.Contains(err.Error(), "geheim") {
			t.Errorf("%v", err)
		}
	}
	cfg := S3Config{AccessKey: "me", SecretKey: "hush"}
	if text := fmt.Sprintf("%v %+v", cfg, cfg); strings.Contains(text, "hush") || !strings.Contains(text, "me") {
		t.Errorf("shown as %s", text)
	}
}

// TestS3ClientSettings sends with the client as it is in production, with and without
// checksums.
func TestS3ClientSettings(t *testing.T) {
	k := newArchiveKit(t)
	for n, checksums := range []string{ChecksumsWhenSupported, ChecksumsWhenRequired} {
		cfg := k.s3Config(testS3.Endpoint)
		cfg.Checksums = checksums
		client, err := NewS3Client(t.Context(), cfg)
		mustNil(t, err)
		mustArchive(t, k.archiveWith(client), 0, batchOf(int64(n+1), 1))
		retryer := client.Options().Retryer
		if retryer.MaxAttempts() != s3Attempts {
			t.Errorf("%d attempts", retryer.MaxAttempts())
		}
	}
	k.wantIDs(0, "1.0", "2.0")
}

// The environment has a say in a client, but for an isolated one.
func TestIsolatedS3Client(t *testing.T) {
	k := newArchiveKit(t)
	t.Setenv("AWS_PROFILE", "missing")
	cfg := k.s3Config(testS3.Endpoint)
	if _, err := NewS3Client(t.Context(), cfg); err == nil {
		t.Fatal("a profile that is missing does not count")
	}
	cfg.Isolated = true
	client, err := NewS3Client(t.Context(), cfg)
	mustNil(t, err)
	mustArchive(t, k.archiveWith(client), 0, batchOf(1, 1))
	if attempts := client.Options().Retryer.MaxAttempts(); attempts != s3Attempts {
		t.Errorf("%d attempts", attempts)
	}
}

// BenchmarkArchiveSend archives full objects of 10,000 events of 1 KB in 20 batches.
func BenchmarkArchiveSend(b *testing.B) {
	k := newArchiveKit(b)
	a, _ := k.archive()
	encoded := benchmarkEvent(1024, true)
	number, events := int64(0), 0
	for b.Loop() {
		var batches []*pipeline.Batch
		for range 20 {
			number++
			batch := batchOf(number, 0)
			batch.Events = slices.Repeat([][]byte{encoded}, 500)
			batches = append(batches, batch)
		}
		mustArchive(b, a, 0, batches...)
		events += 10_000
	}
	b.ReportMetric(float64(events)/b.Elapsed().Seconds(), "events/s")
}
