package pipeline

import (
	"testing"
	"time"
)

// The janitor looks for what is past its TTL, and for what waits for removed sinks, only where the
// survey says that there is any.
func TestSurveySaysWhatIsToBeLookedFor(t *testing.T) {
	s := mustStore(t)
	survey := func() Survey {
		out, err := s.Survey(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	names, err := s.Sinks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, s, mustEvents(t, 3, 1))
	if _, err := s.Append(t.Context(), []Event{mustEvent(t, "/later", "t", "1")}, time.Hour, 1<<20); err != nil {
		t.Fatal(err)
	}
	if now := survey(); now.Due() || now.WaitsForOthers(names) {
		t.Errorf("something is due, or waits for others than %v: %+v", names, now)
	}
	mustExec(t, s.pool, `UPDATE waybill.batches SET expires_at = now() - interval '1 second' WHERE expires_at IS NOT NULL`)
	if now := survey(); !now.Due() {
		t.Errorf("nothing is due: %+v", now)
	}
	if now := survey(); !now.WaitsForOthers(names[1:]) {
		t.Errorf("nothing waits for %s: %+v", names[0], now)
	}
}
