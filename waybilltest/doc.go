// Package waybilltest runs a whole Waybill inside a Go test: ingest, forwarder and janitor, on a Postgres database,
// a nats-server, a receiving endpoint and an S3 archive of the test's own. It is the real system, not a mock
// of it: what a test sends is committed, queued, delivered and settled as in production.
//
//	func TestAnOrderIsAnnounced(t *testing.T) {
//		w := waybilltest.Start(t)
//		shop := NewShop(w.HTTPURL) // the code that is tested; it sends CloudEvents
//		shop.Order("17")
//		got := w.Expect(t, waybilltest.Filter{Type: "order.created"}, 1, 10*time.Second)
//		if got[0].ID != "17" {
//			t.Errorf("announced: %s", got[0].ID)
//		}
//	}
//
// There is nothing to set up and nothing to clean up: everything is on free ports of the loopback interface and in
// t.TempDir, and is gone when the test ends. Any number of tests may have a Waybill each, at once.
//
// # Postgres
//
// The one thing that a machine must have is PostgreSQL, version 14 or later. The databases are made on
// the server that WAYBILLTEST_DATABASE_URL names, as postgres://user:password@host:port/database, or else on the one of
// PGHOST and the other variables of libpq, if PGHOST is set; the user must be allowed to create databases.
// Otherwise the first Start of a test binary starts a private server (of the programs in PATH or
// in /usr/lib/postgresql), which takes two seconds or so. It ends with the test binary, however that ends. A check
// for leaked goroutines finds the one that watches over it; begin such a check after the first Start.
//
// The archive is an S3 server in memory, nats-server runs in the test binary; neither has to be installed.
//
// # Faults
//
// SetBehaviour has the endpoint be down, slow, overloaded, refuse some events or lose its answers, so that a
// test sees what its program makes of late events, of events that come twice and of dead letters.
package waybilltest
