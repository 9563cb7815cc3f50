package devrun

import (
	"runtime"
	"strconv"
	"testing"
)

// The processes share the machine, unless somebody has said how.
func TestProcessorsAreShared(t *testing.T) {
	for given, want := range map[string]string{"": strconv.Itoa(max(1, runtime.GOMAXPROCS(0)/2)), "3": ""} {
		t.Setenv("GOMAXPROCS", given)
		s, err := New(testConfig(t))
		if err != nil {
			t.Fatal(err)
		}
		if got := envOfCommand(s)["GOMAXPROCS"]; got != want {
			t.Errorf("GOMAXPROCS is %q: a process is given %q, want %q", given, got, want)
		}
		config := testConfig(t)
		config.Env = []string{"GOMAXPROCS=7"}
		if s, err = New(config); err != nil {
			t.Fatal(err)
		}
		if got := envOfCommand(s)["GOMAXPROCS"]; got != "7" {
			t.Errorf("a process is given %q, want what its settings say, 7", got)
		}
	}
}
