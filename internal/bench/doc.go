// Package bench is the benchmark suite behind `waybill bench`: scenarios that put load on a
// running system, probes that watch it, a check that nothing was lost, and reports.
// docs/benchmarks.md explains how the parts work together.
package bench
