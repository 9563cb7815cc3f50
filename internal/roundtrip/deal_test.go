package roundtrip

import (
	"testing"
	"time"
)

// dealt runs a dealer and returns the indexes that it gave out.
func dealt(t *testing.T, d *dealer) []int {
	t.Helper()
	queue, ended := make(chan call), make(chan error, 1)
	go func() {
		defer close(queue)
		ended <- d.deal(t.Context(), queue)
	}()
	var indexes []int
	for c := range queue {
		indexes = append(indexes, c.indexes...)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	return indexes
}

func TestEachEventIsDealtOnceToItsIngest(t *testing.T) {
	plan := DefaultPlan("deal", 1000)
	config := DefaultSenderConfig(make([]string, 2), make([]string, 2))
	seen := map[int]int{}
	for to := range 2 {
		for _, index := range dealt(t, newDealer(config, plan, to)) {
			seen[index]++
			if route(plan, index, 2) != to {
				t.Errorf("event %d is dealt to ingest %d", index, to)
			}
		}
	}
	for index := range plan.Events {
		if seen[index] != 1 {
			t.Errorf("event %d is dealt %d times", index, seen[index])
		}
	}
}

func TestDealerKeepsTheRateAndStops(t *testing.T) {
	stop := make(chan struct{})
	config := DefaultSenderConfig(make([]string, 1), make([]string, 1))
	config.Rate, config.Stop = 1000, stop
	began := time.Now()
	time.AfterFunc(500*time.Millisecond, func() { close(stop) })
	got := len(dealt(t, newDealer(config, DefaultPlan("deal", 1_000_000), 0)))
	// One call, of up to 120 events, goes ahead of its time, and 100 ms are made up for.
	// A loaded machine may stop it late, and keep it from some of its events.
	if took := time.Since(began); got < 100 || float64(got) > 1000*took.Seconds()+250 {
		t.Errorf("%d events in %v, want about one each millisecond", got, took)
	}
}
