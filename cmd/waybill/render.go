package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/waybillhq/waybill/pipeline"
)

// renderPending says in a few words what waits for which sink.
func renderPending(pending map[string]pipeline.Backlog) string {
	var parts []string
	for _, sink := range slices.Sorted(maps.Keys(pending)) {
		if n := pending[sink].Events; n > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", sink, n))
		}
	}
	if len(parts) == 0 {
		return "0"
	}
	return strings.Join(parts, ", ")
}

// renderDeadLetters says in a few words how many dead letters there are, by sink and code.
func renderDeadLetters(letters map[[2]string]int64) string {
	keys := slices.SortedFunc(maps.Keys(letters), func(a, b [2]string) int {
		return cmp.Or(cmp.Compare(a[0], b[0]), cmp.Compare(a[1], b[1]))
	})
	parts := make([]string, 0, len(keys))
	for _, key := range keys {
		parts = append(parts, fmt.Sprintf("%s %s %d", key[0], key[1], letters[key]))
	}
	if len(parts) == 0 {
		return "dead letters 0"
	}
	return "dead letters: " + strings.Join(parts, ", ")
}
