package pipeline

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/proto"

	"github.com/waybillhq/waybill/internal/pgtest"
)

// headRace is some writers, each with a store of its own as ingests have, that move one head.
type headRace struct {
	stores []*Store
	key    [2]string    // source and type
	moved  atomic.Int64 // events whose commit was confirmed
	tick   chan struct{}

	mu      sync.Mutex       // guards what follows
	won     map[string]int64 // the seqnum that a writer was told, by event id
	unknown map[string]bool  // ids whose outcome nobody was told
	nothing map[string]bool  // ids of which a writer was told that nothing was stored
	errs    []error
}

func mustHeadRace(t *testing.T, writers int) *headRace {
	t.Helper()
	url := pgtest.New(t)
	r := &headRace{
		key: [2]string{"/one", "head"}, tick: make(chan struct{}, 1),
		won: map[string]int64{}, unknown: map[string]bool{}, nothing: map[string]bool{},
	}
	for range writers {
		r.stores = append(r.stores, mustStoreAt(t, url))
	}
	return r
}

// run lets every writer append requests of size(n) events until the head was moved by target
// events that were confirmed.
func (r *headRace) run(t *testing.T, target int64, size func(*rand.Rand) int) {
	t.Helper()
	var wg sync.WaitGroup
	for w, s := range r.stores {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(w), 1))
			for n := 0; ; n++ {
				events := make([]Event, size(random))
				if r.moved.Add(int64(len(events))) > target {
					return
				}
				for i := range events {
					events[i] = mustEvent(t, r.key[0], r.key[1], fmt.Sprintf("%d-%d-%d", w, n, i))
				}
				if !r.append(t, s, events) {
					r.moved.Add(-int64(len(events))) // somebody has to make up for them
				}
			}
		})
	}
	wg.Wait()
	for _, err := range r.errs {
		t.Error(err)
	}
}

// append notes what the writer was told of its events.
func (r *headRace) append(t *testing.T, s *Store, events []Event) (confirmed bool) {
	done, err := s.Append(t.Context(), events, 0, 1<<20)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case errors.Is(err, ErrOutcomeUnknown):
		for _, e := range events {
			r.unknown[e.ID] = true
		}
		return false
	case errors.Is(err, ErrUnavailable):
		for _, e := range events {
			r.nothing[e.ID] = true
		}
		return false
	case err != nil:
		r.errs = append(r.errs, err)
		return true // do not go on for ever
	}
	for i, b := range done.batches {
		bodies, err := splitBody(done.bodies[i], b.count)
		if err != nil {
			r.errs = append(r.errs, err)
			return true
		}
		for _, body := range bodies {
			ce := &pb.CloudEvent{}
			if err := proto.Unmarshal(body, ce); err != nil {
				r.errs = append(r.errs, err)
				return true
			}
			n, err := strconv.ParseInt(ce.Attributes[SeqnumAttribute].GetCeString(), 10, 64)
			if err != nil {
				r.errs = append(r.errs, err)
			}
			r.won[ce.Id] = n
		}
	}
	select {
	case r.tick <- struct{}{}:
	default:
	}
	return true
}

// settle compares what the writers were told with what Postgres has: each step was won by one,
// and each outcome is what its writer was told, or one of the two where it was told neither.
func (r *headRace) settle(t *testing.T) {
	t.Helper()
	s := r.stores[0]
	assertDense(t, s)
	stored := map[string]int64{}
	for _, row := range mustRows(t, s) {
		if _, twice := stored[row.ID]; twice {
			t.Errorf("event %s is stored twice", row.ID)
		}
		stored[row.ID] = row.Seqnum
	}
	winners := map[int64]string{}
	for id, seqnum := range r.won {
		if other, twice := winners[seqnum]; twice {
			t.Errorf("seqnum %d was won by %s and by %s", seqnum, id, other)
		}
		winners[seqnum] = id
		if stored[id] != seqnum {
			t.Errorf("event %s was told seqnum %d and is stored with %d (0: not at all)", id, seqnum, stored[id])
		}
	}
	for id := range r.nothing {
		if stored[id] != 0 {
			t.Errorf("event %s is stored, and its writer was told that nothing was", id)
		}
	}
	for id, seqnum := range stored {
		if r.won[id] == 0 && !r.unknown[id] {
			t.Errorf("event %s is stored with seqnum %d, and its writer was not told", id, seqnum)
		}
	}
}

// Invariant 4, as a race: 16 writers move one head row 5,000 times, and every step is won once.
func TestOneHeadIsMovedByManyWriters(t *testing.T) {
	const writers, moves = 16, 5000
	r := mustHeadRace(t, writers)
	r.run(t, moves, func(*rand.Rand) int { return 1 })
	r.settle(t)
	if len(r.won) != moves || len(r.unknown)+len(r.nothing) > 0 {
		t.Errorf("%d of %d moves were won, %d have an unknown outcome, %d failed", len(r.won), moves, len(r.unknown), len(r.nothing))
	}
}

// The same while the connections of writers are killed, in the middle of statements, copies and
// commits. What a writer was told still holds; what it was not told is one of the two.
func TestOneHeadIsMovedByWritersThatDie(t *testing.T) {
	const writers, moves = 16, 20_000
	r := mustHeadRace(t, writers)
	admin := mustStoreAt(t, r.stores[0].pool.Config().ConnString())
	stop, stopped := make(chan struct{}), make(chan int, 1)
	go func() { stopped <- r.kill(t, admin, stop) }()
	r.run(t, moves, func(random *rand.Rand) int {
		return []int{1, 1, 1, 3, smallFlush, smallFlush + 1, 150}[random.IntN(7)]
	})
	close(stop)
	killed := <-stopped
	r.settle(t)
	t.Logf("%d connections killed; %d events confirmed, %d not stored, %d unknown", killed, len(r.won), len(r.nothing), len(r.unknown))
	if killed < 10 || len(r.unknown)+len(r.nothing) == 0 {
		t.Errorf("%d connections were killed and %d writers noticed: the test tries nothing", killed, len(r.unknown)+len(r.nothing))
	}
}

// kill ends a connection of a random writer whenever some appends were confirmed.
func (r *headRace) kill(t *testing.T, admin *Store, stop <-chan struct{}) (killed int) {
	for {
		for range 3 {
			select {
			case <-r.tick:
			case <-stop:
				return killed
			}
		}
		tag, err := admin.pool.Exec(t.Context(), `
			SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'
			ORDER BY random() LIMIT 1`)
		if err != nil {
			t.Error(err)
			return killed
		}
		killed += int(tag.RowsAffected())
	}
}
