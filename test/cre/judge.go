package main

import (
	"errors"
	"fmt"
	"time"
)

const (
	// slack is how long an event may be on its way until its row is deleted and Postgres has
	// counted that: the archive's linger, three processes, the two seconds of the counts, and
	// what a busy machine adds.
	slack = 8 * time.Second
	// drift is how much longer an event may be on its way in the second half than in the
	// first, on average.
	drift = 2 * time.Second
	// leastRoom lets a few events be on their way at the lowest rates.
	leastRoom = 3
)

// judge says what is wrong with a series of samples, taken while rate events a second were
// emitted; nil: in each interval there were inserts and deletes, the deletes kept up, and what
// was pending stayed flat.
func judge(samples []sample, rate float64) error {
	if len(samples) < 2 {
		return fmt.Errorf("%d samples are too few to judge by", len(samples))
	}
	room := roomFor(rate, slack)
	var failures []error
	before := sample{}
	for _, s := range samples {
		failures = append(failures, judgeInterval(before, s), judgeLag(s, room))
		before = s
	}
	first, second := averages(samples)
	if grown := second - first; grown > float64(roomFor(rate, drift)) {
		failures = append(failures, fmt.Errorf("pending is not flat: %.1f events on average in the first half, %.1f in the second", first, second))
	}
	return errors.Join(failures...)
}

// roomFor is how many events may be on their way for d at a rate.
func roomFor(rate float64, d time.Duration) int64 {
	return max(int64(rate*d.Seconds()), leastRoom)
}

// judgeInterval wants activity of both kinds between two samples.
func judgeInterval(before, s sample) error {
	var failures []error
	for _, table := range []struct {
		name string
		activity
	}{{"events", s.events.since(before.events)}, {"batches", s.batches.since(before.batches)}} {
		if table.inserted <= 0 {
			failures = append(failures, fmt.Errorf("no row was inserted into %s from %v to %v", table.name, seconds(before.at), seconds(s.at)))
		}
		if table.deleted <= 0 {
			failures = append(failures, fmt.Errorf("no row was deleted from %s from %v to %v", table.name, seconds(before.at), seconds(s.at)))
		}
	}
	return errors.Join(failures...)
}

// judgeLag wants no more than room events on their way.
func judgeLag(s sample, room int64) error {
	var failures []error
	if behind := s.events.inserted - s.events.deleted; behind > room {
		failures = append(failures, fmt.Errorf("the deletes do not keep up: at %v %d rows of events are inserted and not deleted; want %d at most",
			seconds(s.at), behind, room))
	}
	if s.waiting() > room {
		failures = append(failures, fmt.Errorf("at %v %d events are pending; want %d at most", seconds(s.at), s.waiting(), room))
	}
	if behind := s.emitted - s.accepted; behind > room {
		failures = append(failures, fmt.Errorf("at %v %d events are emitted and not accepted; want %d at most", seconds(s.at), behind, room))
	}
	return errors.Join(failures...)
}

// averages are those of what is pending, in the two halves. The sample in the middle is in none.
func averages(samples []sample) (first, second float64) {
	half := len(samples) / 2
	for i := range half {
		first += float64(samples[i].waiting()) / float64(half)
		second += float64(samples[len(samples)-1-i].waiting()) / float64(half)
	}
	return first, second
}

func seconds(d time.Duration) time.Duration { return d.Round(100 * time.Millisecond) }
