package main

import "time"

// poisonKinds are messages and rows that cannot be read.
func poisonKinds() []*kind {
	return []*kind{
		{
			name: "corrupt-messages", about: "messages that cannot be read are put into the stream",
			targets: []string{"EVENTS", "RECEIPTS"}, max: time.Second, parts: part("corrupt messages"),
			make: func(s *system, on string) fault { return &corruptMessages{s: s, on: on} },
		},
		{
			name: "corrupt-hints", about: "values that cannot be read are put into the buckets",
			targets: []string{"all buckets"}, max: time.Second, parts: part("corrupt hints"), effect: effect{doubles: true, leases: true},
			make: func(s *system, _ string) fault { return &corruptHints{s: s} },
		},
	}
}
