package pipeline

import (
	"fmt"
	"slices"
	"testing"
)

// Dead letters that receipts came for late are updated in the order of the receipts, and so locked: two
// janitors that have the same ones must not have them in two orders.
func TestLateReceiptsComeInOneOrder(t *testing.T) {
	var receipts []Receipt
	for i := range 8 {
		receipts = append(receipts, Receipt{Sink: fmt.Sprintf("sink-%d", i), Batches: []BatchReceipt{{ID: BatchID{Number: 1, Token: 2}}}})
	}
	first := gather(receipts).sort(&Settled{}).lateSinks
	slices.Reverse(receipts)
	if again := gather(receipts).sort(&Settled{}).lateSinks; len(first) != 8 || !slices.Equal(first, again) {
		t.Errorf("%v, and then %v", first, again)
	}
}
