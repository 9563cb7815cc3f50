package pipeline

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestListDeadLetters(t *testing.T) {
	s := mustStore(t)
	mustAppend(t, s, mustEvents(t, 3, 1))
	mustExpireNow(t, s)
	letters, err := s.ListDeadLetters(t.Context(), "", "", 100)
	if err != nil || len(letters) != 6 { // for each sink
		t.Fatalf("%d, %v", len(letters), err)
	}
	first := letters[0]
	if first.Code != "expired" || first.Source != "/source/0" || first.Type != "test.event" || first.Seqnum < 1 || first.Reason == "" ||
		!strings.Contains(string(first.Encoded), "payload of "+first.ID) || time.Since(first.FailedAt).Abs() > time.Minute ||
		!first.RequeuedAt.IsZero() || !first.DeliveredLateAt.IsZero() {
		t.Errorf("%+v", first)
	}
	for _, test := range []struct {
		sink, code string
		limit      int
		want       int
	}{
		{"ingress", "", 100, 3},
		{"ingress", "expired", 100, 3},
		{"", "expired", 4, 4},
		{"", "other", 100, 0},
		{"other", "", 100, 0},
	} {
		letters, err := s.ListDeadLetters(t.Context(), test.sink, test.code, test.limit)
		if err != nil || len(letters) != test.want {
			t.Errorf("%+v: %d, %v", test, len(letters), err)
		}
		if slices.ContainsFunc(letters, func(d DeadLetter) bool { return test.sink != "" && d.Sink != test.sink }) {
			t.Errorf("%+v: another sink's", test)
		}
	}
}

func TestCountRequeueable(t *testing.T) {
	s := mustStore(t)
	mustAppend(t, s, mustEvents(t, 5, 1))
	mustExpireNow(t, s)
	count := func(sink, code string, limit int) int {
		t.Helper()
		n, err := s.CountRequeueable(t.Context(), sink, code, limit)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if a, b, c := count("archive", "", 100), count("archive", "other", 100), count("archive", "expired", 4); a != 5 || b != 0 || c != 4 {
		t.Errorf("%d, %d, %d", a, b, c)
	}
	if n, err := s.Requeue(t.Context(), "archive", "", 2, time.Hour); err != nil || n != 2 {
		t.Fatal(n, err)
	}
	if a, b := count("archive", "", 100), count("ingress", "", 100); a != 3 || b != 5 {
		t.Errorf("%d, %d", a, b)
	}
	letters, err := s.ListDeadLetters(t.Context(), "archive", "", 100)
	requeued := 0
	for _, d := range letters {
		if !d.RequeuedAt.IsZero() {
			requeued++
		}
	}
	if err != nil || requeued != 2 {
		t.Errorf("%d requeued, %v", requeued, err)
	}
}
