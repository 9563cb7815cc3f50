package pipeline

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// SinkLane is what a forwarder leases: the delivery of one lane to one sink.
type SinkLane struct {
	Sink string `json:"sink"`
	Lane int    `json:"lane"`
}

// String returns it in words, such as "lane 3 of archive".
func (p SinkLane) String() string { return fmt.Sprintf("lane %d of %s", p.Lane, p.Sink) }

// leaseKey returns the key of its lease.
func (p SinkLane) leaseKey() string { return fmt.Sprintf("%s.%02d", p.Sink, p.Lane) }

// parseLeaseKey undoes leaseKey; ok is false for any other key.
func parseLeaseKey(key string) (p SinkLane, ok bool) {
	sink, number, _ := strings.Cut(key, ".")
	lane, err := strconv.Atoi(number)
	p = SinkLane{Sink: sink, Lane: lane}
	return p, err == nil && p.leaseKey() == key
}

// compareSinkLanes orders by lane and then by sink.
func compareSinkLanes(a, b SinkLane) int {
	return cmp.Or(cmp.Compare(a.Lane, b.Lane), cmp.Compare(a.Sink, b.Sink))
}
