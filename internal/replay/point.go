package replay

import (
	"fmt"
	"strconv"
	"time"
)

// Point is a bound of what is replayed: a time, how long ago it was, or a sequence of the stream.
// The zero value is none.
type Point struct {
	text     string
	time     time.Time
	ago      time.Duration
	sequence uint64
}

// UnmarshalText reads a time in RFC 3339, a duration or a number.
func (p *Point) UnmarshalText(text []byte) error {
	s := string(text)
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		*p = Point{text: s, time: t}
		return nil
	}
	if d, err := time.ParseDuration(s); err == nil && d > 0 {
		*p = Point{text: s, ago: d}
		return nil
	}
	if n, err := strconv.ParseUint(s, 10, 63); err == nil && n > 0 {
		*p = Point{text: s, sequence: n}
		return nil
	}
	return fmt.Errorf("%q: want a time such as 2026-11-25T08:00:00Z, how long ago such as 24h or 30m, or a sequence of the stream such as 4711", text)
}

// String is the point as it was given.
func (p Point) String() string { return p.text }

// at is the time; zero if none was given, or a sequence.
func (p Point) at(now time.Time) time.Time {
	if p.ago > 0 {
		return now.Add(-p.ago).UTC()
	}
	return p.time.UTC()
}
