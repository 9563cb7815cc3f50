package pipeline

import (
	"os"
	"path/filepath"
	"testing"
)

// Receipts that came back when their stream lost its newest part, or was taken back, stand below
// their consumer's floor: nobody would ever settle them, and every retransmit would wait for that.
func TestStrandedReceiptsAreSettled(t *testing.T) {
	r := mustRig(t)
	publish := func(from, to int64) {
		for n := from; n < to; n++ {
			r.mustReceipt(t, Receipt{Sink: "ingress", Batches: []BatchReceipt{{ID: BatchID{Number: n, Token: 1}}}})
		}
	}
	left := func() uint64 {
		info, err := r.queue.receipts(t.Context())
		if err != nil {
			return 1 // it is not up yet
		}
		return info.State.Msgs
	}
	publish(1, 4)
	r.nats.Stop()
	messages, kept := filepath.Join(r.nats.Dir(), "jetstream", "$G", "streams", ReceiptsStream, "msgs"), filepath.Join(t.TempDir(), "msgs")
	if err := os.CopyFS(kept, os.DirFS(messages)); err != nil {
		t.Fatal(err)
	}
	if err := r.nats.Start(); err != nil {
		t.Fatal(err)
	}
	stop := r.mustJanitor(t, nil)
	eventually(t, patience, "the first receipts are settled", func() bool { return left() == 0 })
	publish(4, 200)
	eventually(t, patience, "all receipts are settled", func() bool { return left() == 0 })
	stop()
	r.nats.Stop()
	if err := os.RemoveAll(messages); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(messages, os.DirFS(kept)); err != nil {
		t.Fatal(err)
	}
	if err := r.nats.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "the server answers", func() bool { _, err := r.queue.receipts(t.Context()); return err == nil })
	publish(200, 210) // under numbers that the consumer has seen
	if n := left(); n == 0 {
		t.Fatal("nothing is stranded")
	}
	r.mustJanitor(t, nil)
	eventually(t, patience, "what came back, and what came since, is settled", func() bool { return left() == 0 })
}
