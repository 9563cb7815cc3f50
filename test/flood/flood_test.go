package main

import (
	"fmt"
	"testing"
	"time"
)

// TestFlood is the flood with fewer producers and the same bounds, which for most of their
// bytes do not depend on how many there are: the whole one is `go run ./test/flood`.
func TestFlood(t *testing.T) {
	binary, err := build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, slow := range []bool{false, true} {
		t.Run(fmt.Sprintf("slow commits %v", slow), func(t *testing.T) {
			t.Parallel() // the slow one mostly waits
			s := settings{producers: 200, length: 3 * time.Second, slow: slow, limit: 200, binary: binary}
			if err := flood(t.Context(), s, t.Output()); err != nil {
				t.Error(err)
			}
		})
	}
}
