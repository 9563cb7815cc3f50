package bench

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestComparingScenariosExist(t *testing.T) {
	for _, name := range comparing {
		if s, err := Find(name); err != nil || !s.Compares() {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Every other run is in reverse, and the others as they were.
func TestInTurn(t *testing.T) {
	things := []int{1, 2, 3}
	for run, want := range [][]int{{1, 2, 3}, {3, 2, 1}, {1, 2, 3}, {3, 2, 1}} {
		if got := inTurn(things, run); !slices.Equal(got, want) {
			t.Errorf("run %d: %v, want %v", run, got, want)
		}
	}
}

// TestCompareInTurn: all once, then all in reverse; and nothing more after an error.
func TestCompareInTurn(t *testing.T) {
	var got []string
	measure := func(thing string, run int) error {
		got = append(got, fmt.Sprintf("%s%d", thing, run))
		if thing == "b" && run == 2 {
			return errors.New("broken")
		}
		return nil
	}
	if err := compare(2, []string{"a", "b"}, measure); err != nil {
		t.Fatal(err)
	}
	if order := strings.Join(got, " "); order != "a0 b0 b1 a1" {
		t.Errorf("%s", order)
	}
	got = nil
	if err := compare(5, []string{"a", "b"}, measure); err == nil || len(got) != 6 {
		t.Errorf("%v after %v", err, got)
	}
}

func TestMedian(t *testing.T) {
	for want, values := range map[float64][]float64{3: {3}, 2.5: {4, 1}, 2: {9, 1, 2}} {
		if got := median(values); got != want {
			t.Errorf("%v: %v, want %v", values, got, want)
		}
	}
}

// TestMedianValues: of what each run knows.
func TestMedianValues(t *testing.T) {
	runs := []map[string]float64{{"rate": 10, "p99": 3, "once": 1}, {"rate": 30, "p99": 1}, {"rate": 20, "p99": 2}}
	want := map[string]float64{"rate": 20, "rate, lowest": 10, "rate, highest": 30, "p99": 2}
	if got := medianValues(runs, "rate", "once"); !maps.Equal(got, want) {
		t.Errorf("%v; want %v", got, want)
	}
	if got := medianValues(runs[:1], "rate"); !maps.Equal(got, runs[0]) {
		t.Errorf("of one run: %v; want that run", got)
	}
}

func TestRatiosAreOfTheSameRun(t *testing.T) {
	these, others := []map[string]float64{{"events": 10}, {"events": 30}}, []map[string]float64{{"events": 5}, {"events": 60}}
	if got, want := ratiosOf(these, others, "events"), []float64{2, 0.5}; !slices.Equal(got, want) {
		t.Errorf("%v; want %v", got, want)
	}
}
