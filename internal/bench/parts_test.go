package bench

import (
	"strings"
	"testing"
)

// --part picks questions about the outbox by a piece of their names.
func TestOutboxParts(t *testing.T) {
	for part, want := range map[string]int{"": 5, "latency": 1, "64 sessions": 1, "o": 4} {
		parts, err := outboxParts(Settings{Part: &part})
		if err != nil || len(parts) != want {
			t.Errorf("%q: %d parts, %v; want %d", part, len(parts), err, want)
		}
	}
	none := "nobody"
	if _, err := outboxParts(Settings{Part: &none}); err == nil || !strings.Contains(err.Error(), "latency; saturation; cost") {
		t.Errorf("an unknown part is %v", err)
	}
}
