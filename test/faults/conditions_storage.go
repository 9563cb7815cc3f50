package main

import "slices"

// storageConditions are about Postgres's tables.
func storageConditions() []*condition {
	return []*condition{
		{
			name: "postgres-snapshot", about: "a transaction with a snapshot is open for the whole run, so that no dead row can be removed",
			standing: holdSnapshot, excludes: endsConnections,
		},
		{
			name: "million-waiting", about: "a million events wait for both sinks, and Postgres's statistics are of empty tables",
			setup: crowded, quiet: true,
			standing: func(s *system) fault { return &crowd{s} }, judge: judgeStatements,
			excludes: func(k *kind) bool { return k.name == "postgres-disk-full" }, // the disk is too small for them
		},
	}
}

// endsConnections names the faults that end connections which are not Waybill's.
func endsConnections(k *kind) bool {
	return slices.Contains([]string{"postgres-immediate-stop", "postgres-disk-full"}, k.name)
}
