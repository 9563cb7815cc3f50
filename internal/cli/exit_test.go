package cli

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// Each outcome has a status of its own, which the documentation has too.
func TestStatus(t *testing.T) {
	documented := map[int]bool{}
	for _, c := range ExitCodes() {
		documented[c.Code] = true
	}
	broken := errors.New("it is broken")
	for _, test := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{broken, 1},
		{NegativeError{broken}, 3},
		{WrongError{broken}, 80},
		{fmt.Errorf("tail: %w", WrongError{broken}), 80},
		{fmt.Errorf("audit: %w", NegativeError{broken}), 3},
	} {
		var out strings.Builder
		got := status(&out, "waybill", test.err)
		if got != test.want || !documented[got] {
			t.Errorf("%v: status %d, want %d; documented: %v", test.err, got, test.want, documented)
		}
		if test.err != nil && !strings.Contains(out.String(), "waybill: ") || test.err == nil && out.String() != "" {
			t.Errorf("%v: it prints %q", test.err, out.String())
		}
	}
}
