// Package process is Waybill's three processes as functions: each is a documented
// configuration struct with a Run(ctx) that blocks until ctx ends and everything it
// started has ended. cmd/ingest, cmd/forwarder and cmd/janitor parse one of them and run
// it; `waybill ingest` and so on are the same.
package process
