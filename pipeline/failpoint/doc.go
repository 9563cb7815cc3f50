// Package failpoint marks the places at which a process may be made to die, to stand still
// or to lose an answer, so that tests can break it exactly there: before and after each
// thing that it writes. A build without the tag failpoints has no trace of them: Hit and Err
// are empty, and are inlined.
//
// With the tag a process reads its orders from a file in the directory that
// WAYBILL_FAILPOINTS names; the file's name is the process's WAYBILL_ID. Without either
// variable nothing happens. An order, as Order encodes it, is one line:
//
//	ingest/after-commit-small kill 1
//
// The last word is which hit of the point it means, counted from when the process first
// sees the order. It is carried out once, by one goroutine: the file is renamed to
// <name>.hit before, which tells the one who gave it that the point was reached.
package failpoint
