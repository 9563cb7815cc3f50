package main

// storageKinds are about what Postgres stores its data on.
func storageKinds() []*kind {
	return []*kind{{
		name: "postgres-disk-full", about: "no room for Postgres's data: it refuses, panics, and starts once there is room",
		targets: []string{"postgres"}, min: 4 * second, max: 7 * second, effect: effect{retransmits: true}, parts: part("postgres"),
		setup: smallDisk,
		make:  func(s *system, _ string) fault { return &diskFull{s: s} },
	}}
}
