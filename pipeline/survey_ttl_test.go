package pipeline

import (
	"strings"
	"testing"
	"time"
)

// An event is near its TTL when less than a fifth of it is left, whatever the TTL is.
func TestSurveySaysWhatIsNearItsTTL(t *testing.T) {
	s := mustStore(t)
	done := mustAppend(t, s, mustEvents(t, 30, 20))
	near := done.batches[0]
	mustSettle(t, s, receiptFor("archive", near))
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := s.pool.Exec(t.Context(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	exec(`UPDATE waybill.batches SET accepted_at = now() - interval '79 minutes', expires_at = now() + interval '21 minutes'`)
	survey, err := s.Survey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := survey.NearTTL(); err != nil {
		t.Errorf("with 21 %% left: %v", err)
	}
	exec(`UPDATE waybill.batches SET accepted_at = now() - interval '81 minutes', expires_at = now() + interval '19 minutes' WHERE batch = $1`, near.ID.Number)
	exec(`UPDATE waybill.batches SET expires_at = NULL WHERE batch <> $1`, near.ID.Number)
	if survey, err = s.Survey(t.Context()); err != nil {
		t.Fatal(err)
	}
	by := survey.BySink()
	if by["ingress"].NearTTL != int64(near.count) || by["archive"].NearTTL != 0 {
		t.Errorf("%d events for ingress and %d for archive are near their TTL, want %d and none", by["ingress"].NearTTL, by["archive"].NearTTL, near.count)
	}
	if left := by["ingress"].OldestExpires.Sub(survey.Now).Round(time.Minute); left != 19*time.Minute {
		t.Errorf("the first expires in %v", left)
	}
	if err := survey.NearTTL(); err == nil || !strings.Contains(err.Error(), "for ingress") || strings.Contains(err.Error(), "archive") || !strings.Contains(err.Error(), "19m") {
		t.Errorf("it is said so: %v", err)
	}
}
