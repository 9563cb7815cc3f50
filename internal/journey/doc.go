// Package journey takes an event's way through Waybill apart by its spans: which spans of a trace
// are the event's, and how long each stage to each sink took.
package journey
