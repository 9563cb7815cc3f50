package main

import (
	"time"

	"github.com/waybillhq/waybill/pipeline"
)

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
		{
			name: "damage-rows", about: "rows of events that wait are spoilt and deleted in Postgres, and the stream deleted",
			targets: []string{"events"}, min: 14 * second, max: 16 * second, parts: part("endpoint", "nats-server", "postgres"),
			effect: effect{doubles: true, retransmits: true, codes: []string{pipeline.CodeDamaged}},
			make: func(s *system, _ string) fault {
				return &together{&misbehave{s, `{"down":true}`}, &damageRows{s: s}}
			},
		},
	}
}
