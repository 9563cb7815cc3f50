package pipeline

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// damages change a batch of three events, and say at which indexes its events are then damaged.
var damages = []struct {
	name    string
	sql     string // $1: the batch
	damaged []int
	reason  string
	lost    bool // nothing is left of it
}{
	{"a missing row", `DELETE FROM waybill.events WHERE position = ($1 << 12) + 1`, []int{1}, "missing", true},
	{"no row", `DELETE FROM waybill.events WHERE position >> 12 = $1`, []int{0, 1, 2}, "missing", true},
	{"garbage", `UPDATE waybill.events SET event = '\xff00ff' WHERE position = ($1 << 12) + 2`, []int{2}, "cannot be decoded", false},
	{"cut off", `UPDATE waybill.events SET event = substr(event, 1, length(event) - 3) WHERE position = $1 << 12`, []int{0}, "cannot be decoded", false},
	{"nothing in it", `UPDATE waybill.events SET event = '' WHERE position = $1 << 12`, []int{0}, "another id", false},
	{"another's", `UPDATE waybill.events SET type = 'other' WHERE position = $1 << 12`, []int{0}, "another type", false},
	{"a wrong count, too high", `UPDATE waybill.batches SET events = 4 WHERE batch = $1`, []int{3}, "missing", true},
	{"a wrong count, too low", `UPDATE waybill.batches SET events = 2 WHERE batch = $1`, nil, "", false},
}

// A damaged batch must not stop the others, and must not be sent in part: what is damaged becomes
// dead letters of the sinks that lack it, and what is sound waits for them alone.
func TestClaimStaleTakesDamagedBatchesApart(t *testing.T) {
	for _, d := range damages {
		t.Run(d.name, func(t *testing.T) {
			s := mustStore(t)
			first := mustAppend(t, s, mustEvents(t, 3, 1)).batches[0]
			second := mustAppend(t, s, mustEvents(t, 3, 1)).batches[0]
			mustSettle(t, s, Receipt{Sink: "archive", Batches: []BatchReceipt{{ID: first.ID}}})
			if _, err := s.pool.Exec(t.Context(), d.sql, first.ID.Number); err != nil {
				t.Fatal(err)
			}
			stale := staleFor{"ingress", time.Now().Add(time.Minute)}
			claims, damaged, err := mustClaim(t, s, first.Lane, 100, stale)
			if err != nil || len(claims) != 1 || claims[0].batch.ID != second.ID || len(damaged) != 1 || damaged[0].id != first.ID || damaged[0].letters[SinkCode{"ingress", CodeDamaged}] != len(d.damaged) {
				t.Fatalf("%d claims, damaged %v, %v", len(claims), damaged, err)
			}
			mustBeLetters(t, s, first.ID, d.damaged, d.reason, d.lost)
			// Three events that are not damaged, each alone, for the sink that lacks them.
			sound := 3
			for _, index := range d.damaged {
				if index < 3 {
					sound--
				}
			}
			claims, damaged, err = mustClaim(t, s, first.Lane, 100, staleFor{"ingress", time.Unix(1, 0)})
			if err != nil || len(damaged) != 0 || len(claims) != sound {
				t.Fatalf("%d claims, damaged %v, %v, want %d sound events", len(claims), damaged, err, sound)
			}
			for _, c := range claims {
				b := c.batch
				if b.Origin == nil || b.Origin.Batch != first.ID || strings.Join(b.Sinks, ",") != "ingress" || b.count != 1 {
					t.Errorf("a sound event waits as %+v", b)
				}
			}
			if n := mustCount(t, s, `SELECT count(*) FROM waybill.events`); n != 3+sound {
				t.Errorf("%d rows of events are left, want %d", n, 3+sound)
			}
		})
	}
}

// An event whose row is missing must not vanish when its batch ends otherwise than by a delivery; and
// when a receipt says that the sink has it after all, its letter says so too.
func TestNoEventVanishesWithItsRow(t *testing.T) {
	refusal := []Refusal{{Index: 1, Code: "NO", Reason: "no"}}
	for _, end := range []struct {
		name, code string
		come       func(*testing.T, *Store, Batch)
		late       bool // whether it may still be delivered
	}{
		{"expired", CodeDamaged, func(t *testing.T, s *Store, _ Batch) { mustExpireNow(t, s) }, true},
		{"refused", "NO", func(t *testing.T, s *Store, b Batch) {
			mustSettle(t, s, Receipt{Sink: "ingress", Batches: []BatchReceipt{{ID: b.ID, Refused: refusal}}})
		}, false},
		{"taken apart", CodeDamaged, func(t *testing.T, s *Store, b Batch) {
			if _, damaged, err := mustClaim(t, s, b.Lane, 10, staleFor{"ingress", time.Now().Add(time.Minute)}); err != nil || len(damaged) != 1 {
				t.Fatal(damaged, err)
			}
		}, true},
	} {
		t.Run(end.name, func(t *testing.T) {
			s := mustStore(t)
			b := mustAppend(t, s, mustEvents(t, 3, 1)).batches[0]
			mustSettle(t, s, receiptFor("archive", b))
			if _, err := s.pool.Exec(t.Context(), `DELETE FROM waybill.events WHERE position = ($1 << 12) + 1`, b.ID.Number); err != nil {
				t.Fatal(err)
			}
			end.come(t, s, b)
			letter := mustListOne(t, s, LetterFilter{Code: end.code})
			if letter.Position != b.Position(1) || letter.Sink != "ingress" || !strings.Contains(letter.Reason, "missing") || letter.State() != LetterDead {
				t.Errorf("letter %+v", letter)
			}
			mustSettle(t, s, receiptFor("ingress", b))
			if letter = mustListOne(t, s, LetterFilter{Code: end.code}); (letter.State() == LetterLate) != end.late {
				t.Errorf("after a late receipt: %+v", letter)
			}
		})
	}
}

func mustBeLetters(t *testing.T, s *Store, id BatchID, indexes []int, reason string, lost bool) {
	t.Helper()
	letters := mustList(t, s, LetterFilter{Code: CodeDamaged})
	if len(letters) != len(indexes) {
		t.Fatalf("dead letters %+v; want %d", letters, len(indexes))
	}
	for i, l := range letters {
		if l.Sink != "ingress" || l.Position != Position(id.Number, indexes[i]) || !strings.Contains(l.Reason, reason) || (l.ID == "") != lost {
			t.Errorf("dead letter %+v, want one of the event at index %d: %s", l, indexes[i], reason)
		}
	}
}

// What was requeued and is damaged goes back to its own dead letter, which still has the event.
func TestDamagedRequeuedEventGoesBackToItsDeadLetter(t *testing.T) {
	s := mustStore(t)
	b := mustAppend(t, s, mustEvents(t, 1, 1)).batches[0]
	mustSettle(t, s, Receipt{Sink: "ingress", Batches: []BatchReceipt{{ID: b.ID, Refused: []Refusal{{Code: "NO", Reason: "no"}}}}},
		Receipt{Sink: "archive", Batches: []BatchReceipt{{ID: b.ID}}})
	if n := mustRequeue(t, s, LetterFilter{Sink: "ingress"}); n != 1 {
		t.Fatalf("requeued %d", n)
	}
	if _, err := s.pool.Exec(t.Context(), `UPDATE waybill.events SET event = '\xff'`); err != nil {
		t.Fatal(err)
	}
	claims, damaged, err := mustClaim(t, s, b.Lane, 100, staleFor{"ingress", time.Now().Add(time.Minute)})
	if err != nil || len(claims) != 0 || len(damaged) != 1 {
		t.Fatalf("%d claims, damaged %v, %v", len(claims), damaged, err)
	}
	letters := mustList(t, s, LetterFilter{Sink: "ingress"})
	if len(letters) != 1 || letters[0].Code != CodeDamaged || !letters[0].RequeuedAt.IsZero() || len(letters[0].Encoded) < 10 {
		t.Fatalf("letters %+v", letters)
	}
	if n := mustRequeue(t, s, LetterFilter{Sink: "ingress", Code: CodeDamaged}); n != 1 {
		t.Fatalf("requeued %d: it is sound again", n)
	}
	if claims, damaged, err = mustClaim(t, s, b.Lane, 100, staleFor{"ingress", time.Now().Add(time.Minute)}); err != nil || len(claims) != 1 || len(damaged) != 0 {
		t.Fatalf("%d claims, damaged %v, %v", len(claims), damaged, err)
	}
	// Damaged again, it may still be delivered: the copy in the queue is sound.
	requeued := claims[0].batch
	if _, err := s.pool.Exec(t.Context(), `DELETE FROM waybill.events`); err != nil {
		t.Fatal(err)
	}
	if _, damaged, err = mustClaim(t, s, b.Lane, 100, staleFor{"ingress", time.Now().Add(time.Minute)}); err != nil || len(damaged) != 1 {
		t.Fatalf("damaged %v, %v", damaged, err)
	}
	mustSettle(t, s, receiptFor("ingress", requeued))
	if d := mustListOne(t, s, LetterFilter{Code: CodeDamaged}); d.State() != LetterLate {
		t.Errorf("after a late receipt: %+v", d)
	}
}

// The sound events of a damaged batch reach the sinks that lack them, with nobody's doing.
func TestSoundEventsOfADamagedBatchArrive(t *testing.T) {
	r := mustRig(t)
	var events []Event
	for i := range 5 {
		events = append(events, laneEvent(t, fmt.Sprint(i)))
	}
	b := mustAppend(t, r.store, events).batches[0] // and never published
	// Behind what is stored: a number that is taken is repaired on the way.
	if _, err := r.store.pool.Exec(t.Context(), `UPDATE waybill.events SET event = '\x0a' WHERE position = $1`, Position(b.ID.Number, 3)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.store.pool.Exec(t.Context(), `SELECT setval('waybill.batch_numbers', 1, false)`); err != nil {
		t.Fatal(err)
	}
	r.mustJanitor(t, nil)
	for _, sink := range testSpec.Sinks {
		for n := 0; n < 4; {
			got, msg := r.take(t, sink, testLane, patience)
			if got == nil {
				t.Fatalf("%s got %d of 4 sound events", sink, n)
			}
			if len(got.Events) != 1 || got.Origin == nil || got.Origin.Batch != b.ID {
				t.Errorf("%s got %+v", sink, got)
			}
			if got.For(sink) { // the sink whose consumer is made first may have them in messages of its own
				n++
			}
			r.mustDeliver(t, sink, got, msg)
		}
	}
	eventually(t, patience, "all is settled", func() bool { return r.pending(t) == 0 })
	if n := mustCount(t, r.store, `SELECT count(*) FROM waybill.dead_letters WHERE code = 'DAMAGED'`); n != 2 {
		t.Errorf("%d dead letters, want one for each sink", n)
	}
}
