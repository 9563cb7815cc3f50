package bench

import (
	"sync"
	"testing"
	"time"
)

// TestLatenciesMerge: what goes into different shards comes out as one distribution.
func TestLatenciesMerge(t *testing.T) {
	l := newLatencies()
	var wg sync.WaitGroup
	for i := range 1000 {
		wg.Go(func() { l.record(int64(i), time.Duration(i+1)*time.Millisecond) })
	}
	wg.Wait()
	q := quantilesOf(l.merged())
	near := func(got, want float64) bool { return got > want*0.998 && got < want*1.002 }
	if q.Count != 1000 || !near(q.P50, 500) || !near(q.P99, 990) || !near(q.P999, 999) || !near(q.Max, 1000) || !near(q.Mean, 500.5) {
		t.Errorf("%+v", q)
	}
}

func TestLatenciesBeyondTheBounds(t *testing.T) {
	l := newLatencies()
	l.record(0, -time.Second)
	l.record(1, 2*time.Hour)
	if q := quantilesOf(l.merged()); q.Count != 2 || q.Max < time.Hour.Seconds()*1000*0.99 {
		t.Errorf("%+v", q)
	}
}
