package pipeline

import (
	"encoding/json"
	"strings"
	"testing"
)

// What a receipt says of spans gives way to what it says of events.
func TestTracedEventsShortenNoReason(t *testing.T) {
	b := BatchReceipt{ID: BatchID{Number: 1, Token: 2}}
	for i := range 480 {
		b.Refused = append(b.Refused, Refusal{Index: i, Code: "REFUSED", Reason: strings.Repeat("r", maxRefusalReason)})
	}
	whole, err := encodeBatchReceipt(b)
	if err != nil || len(whole) < maxReceiptMessage-20<<10 || len(whole) > maxReceiptMessage-256 {
		t.Fatalf("%d bytes, want nearly %d; %v", len(whole), maxReceiptMessage, err)
	}
	for i := range maxTracedReceipt {
		b.Traced = append(b.Traced, TracedEvent{Index: i, Parent: someParent})
	}
	encoded, err := encodeBatchReceipt(b)
	if err != nil {
		t.Fatal(err)
	}
	var got BatchReceipt
	if err := json.Unmarshal(encoded, &got); err != nil {
		t.Fatal(err)
	}
	for i, f := range got.Refused {
		if f != b.Refused[i] {
			t.Fatalf("the reason of %d bytes is cut to %d", len(b.Refused[i].Reason), len(f.Reason))
		}
	}
}

// A receipt counts whatever it says of spans: without it, what was delivered would be sent again.
func TestReceiptsCountWhateverIsTraced(t *testing.T) {
	for _, traced := range []string{`null`, `{}`, `"all"`, `[1]`, `[{"index":"0"}]`, `[{"index":1e30}]`, `[{"traceparent":5}]`} {
		got, err := parseReceipts([]byte(`{"sink":"a","lane":0,"batches":[{"batch":"1.0000000000000002","traced":` + traced + `}]}`))
		if err != nil || len(got) != 1 || len(got[0].Batches) != 1 {
			t.Errorf("traced: %s: %+v, %v", traced, got, err)
		}
	}
}
