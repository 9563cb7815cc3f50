package main

import "time"

// clockKinds are jumps of Postgres's clock under load: there and, with the end of the
// fault, back again. Waybill takes ages and the order of the queue from this clock, so that
// what is queued may be taken for stale.
func clockKinds() []*kind {
	of := func(way string, offset time.Duration) *kind {
		return &kind{
			name: "postgres-clock-" + way, about: "Postgres's clock jumps 5 minutes " + way + ", and back", targets: []string{"postgres"},
			min: 3 * second, max: 8 * second, effect: effect{doubles: true, retransmits: true}, parts: part("postgres clock"),
			setup: fakePostgresClock(0),
			make:  func(s *system, _ string) fault { return &clockJump{s, offset} },
		}
	}
	return []*kind{of("ahead", clockOff), of("behind", -clockOff)}
}
