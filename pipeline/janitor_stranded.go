package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// stranded remembers the first receipt of the stream that its consumer will never bring: the
// stream lost its newest part, or was taken back, and the consumer stands beyond what is there.
// Every retransmit waits for it. It belongs to upkeep.
type stranded struct {
	first uint64 // sequence; 0: none
	since time.Time
}

// strandedFor is how long a receipt must have been so: one that was acked is deleted a moment
// later.
const strandedFor = 2 * time.Second

// reviveReceipts makes the consumer of RECEIPTS anew where it stands beyond messages that are
// still there. All that is there comes again then, and a receipt that is settled twice changes
// nothing.
func (j *Janitor) reviveReceipts(ctx context.Context) error {
	consumer, err := j.queue.js.Consumer(ctx, ReceiptsStream, receiptsConsumer)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil // the next look creates it
	}
	if err != nil {
		return fmt.Errorf("look up consumer %s: %w", receiptsConsumer, err)
	}
	info := consumer.CachedInfo()
	receipts, err := j.queue.receipts(ctx) // after the consumer, whose floor only grows
	if err != nil {
		return err
	}
	j.sawStream(receipts)
	beyond := receipts.State.Msgs > 0 && receipts.State.FirstSeq <= info.AckFloor.Stream
	ahead := info.Delivered.Stream > receipts.State.LastSeq
	switch now := time.Now(); {
	case !beyond && !ahead:
		j.stranded = stranded{}
		return nil
	case j.stranded.since.IsZero() || j.stranded.first != receipts.State.FirstSeq:
		j.stranded = stranded{receipts.State.FirstSeq, now}
		return nil
	case now.Sub(j.stranded.since) < strandedFor:
		return nil
	}
	j.stranded = stranded{}
	j.log.Warn("the consumer of the receipts stands beyond what is in their stream and is made anew",
		"floor", info.AckFloor.Stream, "first", receipts.State.FirstSeq, "last", receipts.State.LastSeq)
	if err := j.queue.js.DeleteConsumer(ctx, ReceiptsStream, receiptsConsumer); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return fmt.Errorf("delete consumer %s: %w", receiptsConsumer, err)
	}
	return j.queue.ensureConsumer(ctx, ReceiptsStream, receiptsConsumerConfig(j.cfg.Queue))
}
