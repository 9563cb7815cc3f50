package main

import (
	"slices"
	"time"
)

// streamKinds are streams that lose their newest part, and messages that arrive when nobody
// waits for them any more.
func streamKinds() []*kind {
	doubles := effect{doubles: true, retransmits: true}
	return []*kind{
		{
			name: "lose-newest", about: "kill -9, and what was stored lately is gone; of a stream alone, its consumers stand beyond its end",
			targets: []string{"the whole store", "EVENTS", "RECEIPTS"}, min: 2 * second, max: 4 * second,
			parts: part("nats-server"), effect: effect{doubles: true, retransmits: true, leases: true},
			make: func(s *system, on string) fault { return &loseNewest{s: s, on: on} },
		},
		{
			name: "late-originals", about: "what an ingest publishes is held up in the network until it was retransmitted",
			targets: ingests, min: 17 * second, max: 20 * second, effect: doubles,
			parts: func(on string) []string { return append([]string{on, on + " to nats"}, janitors...) },
			make:  func(s *system, on string) fault { return &lateOriginals{s: s, on: on} },
		},
		{
			name: "replay-originals", about: "messages that were settled long ago are published again, without their ids",
			targets: []string{"EVENTS"}, min: 0, max: time.Second, effect: doubles, parts: part("replay"),
			make: func(s *system, _ string) fault { return &replayOriginals{s: s} },
		},
	}
}

// takesFromStream names the faults after which EVENTS does not tell what was in it.
func takesFromStream(k *kind) bool {
	return slices.Contains([]string{"wipe-jetstream", "delete-events-stream", "lose-newest"}, k.name)
}
