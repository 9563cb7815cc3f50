// Package devrun is the whole system on one machine: a Stack starts Postgres, a
// nats-server, an S3 server and a receiving endpoint, or uses existing ones, and Waybill's
// three processes, each as a process of its own that can be killed alone and is then
// started again. `waybill dev` shows it, `waybill dev --once` and tests send through it.
package devrun
