// Package replay delivers again, to one sink, what was accepted before: out of the stream EVENTS or
// out of the archive, beside the live path and without its noticing.
package replay
