// Package collector receives spans and metrics by OTLP over gRPC and keeps them in memory: the first
// spans and the newest metrics (Collector), for measuring and for tests, or the newest traces
// (Recent), for `waybill dev`.
package collector
