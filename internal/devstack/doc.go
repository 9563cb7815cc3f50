// Package devstack starts, on one machine, the servers that Waybill needs: Postgres,
// NATS with JetStream and an S3 server. `waybill dev` and the tests stand on it; nothing
// that runs in production imports it.
//
// Whatever it starts listens on 127.0.0.1 only, keeps its files in one directory, goes
// on where it was when it is started on the same directory again, and ends with the
// process that started it, also when that is killed with SIGKILL (on Linux).
package devstack
