package bench

import (
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

const (
	// Latencies are kept in microseconds, from 1 to an hour, with three digits.
	latencyUnit   = time.Microsecond
	latencyMax    = int64(time.Hour / latencyUnit)
	latencyDigits = 3
	// latencyShards keeps callers from waiting for one another.
	latencyShards = 8
)

// latencies is a histogram that many goroutines record into.
type latencies struct {
	shards [latencyShards]struct {
		sync.Mutex
		h *hdrhistogram.Histogram
	}
}

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, latencyMax, latencyDigits)
}

func newLatencies() *latencies {
	l := &latencies{}
	for i := range l.shards {
		l.shards[i].h = newHistogram()
	}
	return l
}

// record notes a latency; which spreads the goroutines over the shards.
func (l *latencies) record(which int64, d time.Duration) {
	s := &l.shards[uint64(which)%latencyShards]
	s.Lock()
	defer s.Unlock()
	recordInto(s.h, d)
}

func recordInto(h *hdrhistogram.Histogram, d time.Duration) {
	_ = h.RecordValue(min(max(int64(d/latencyUnit), 1), latencyMax)) // it is within the bounds
}

// merged returns everything that was recorded.
func (l *latencies) merged() *hdrhistogram.Histogram {
	all := newHistogram()
	for i := range l.shards {
		s := &l.shards[i]
		s.Lock()
		all.Merge(s.h)
		s.Unlock()
	}
	return all
}

// Quantiles are of a latency, in milliseconds.
type Quantiles struct {
	Count int64   `json:"count"`
	Mean  float64 `json:"mean_ms"`
	P50   float64 `json:"p50_ms"`
	P90   float64 `json:"p90_ms"`
	P95   float64 `json:"p95_ms"`
	P99   float64 `json:"p99_ms"`
	P999  float64 `json:"p99_9_ms"`
	Max   float64 `json:"max_ms"`
}

func quantilesOf(h *hdrhistogram.Histogram) Quantiles {
	if h.TotalCount() == 0 {
		return Quantiles{}
	}
	ms := func(us int64) float64 { return float64(us) / 1000 }
	at := func(percentile float64) float64 { return ms(h.ValueAtPercentile(percentile)) }
	return Quantiles{
		Count: h.TotalCount(), Mean: h.Mean() / 1000,
		P50: at(50), P90: at(90), P95: at(95), P99: at(99), P999: at(99.9), Max: ms(h.Max()),
	}
}
