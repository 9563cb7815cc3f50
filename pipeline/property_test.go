package pipeline

import (
	"flag"
	"math/bits"
	"strconv"
	"testing"

	"pgregory.net/rapid"
)

// check tries a property with so many cases, or with as many as -rapid.checks says. A failure
// prints the seed (-rapid.seed) that repeats it. The race detector makes a case ten times as
// slow and sees nothing in one goroutine, so it gets a tenth of them.
func check(t *testing.T, cases int, property func(*rapid.T)) {
	t.Helper()
	if raceDetector {
		cases = max(cases/10, 10)
	}
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "rapid.checks" })
	if !given {
		checks := flag.Lookup("rapid.checks")
		before := checks.Value.String()
		if err := checks.Value.Set(strconv.Itoa(cases)); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = checks.Value.Set(before) }() // it was valid before
	}
	rapid.Check(t, property)
}

// oneIn is true once in 2, 4, 8 … times; it shrinks towards false. rapid's own numbers favour
// the small ones.
func oneIn(t *rapid.T, power int, what string) bool {
	for range bits.TrailingZeros(uint(power)) {
		if !rapid.Bool().Draw(t, what) {
			return false
		}
	}
	return true
}
