package failpoint

import "testing"

func TestOrderIsReadAsItWasWritten(t *testing.T) {
	want := Order{Point: "ingest/before-publish", Action: Kill, Nth: 3}
	if got, err := ParseOrder(want.String()); err != nil || got != want {
		t.Errorf("read %v (%v), want %v", got, err, want)
	}
	for _, wrong := range []string{"", "ingest/before-publish kill", "ingest/before-publish jump 1", "ingest/before-publish kill 0"} {
		if o, err := ParseOrder(wrong); err == nil {
			t.Errorf("%q is read as %v", wrong, o)
		}
	}
}
