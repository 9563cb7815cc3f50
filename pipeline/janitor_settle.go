package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/nats-io/nats.go/jetstream"
)

// receiptMsg is a receipt and the message it came in, which is acked after the commit.
type receiptMsg struct {
	receipt Receipt
	msg     jetstream.Msg
}

// settleReceipts applies receipts until ctx ends or the consumer breaks. Receipts that
// were not acked come again, here or at another janitor.
func (j *Janitor) settleReceipts(ctx context.Context) error {
	consumer, err := j.queue.js.Consumer(ctx, ReceiptsStream, receiptsConsumer)
	if err != nil {
		return fmt.Errorf("open the receipts: %w", err)
	}
	it, err := consumer.Messages(jetstream.PullMaxMessages(2*j.cfg.SettleReceipts),
		jetstream.PullHeartbeat(2*time.Second), jetstream.PullExpiry(10*time.Second),
		jetstream.WithMessagesErrOnMissingHeartbeat(true))
	if err != nil {
		return fmt.Errorf("open the receipts: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	incoming := make(chan receiptMsg)
	broken := make(chan error, 1)
	go func() {
		defer close(incoming)
		broken <- j.readReceipts(ctx, it, incoming)
	}()
	defer func() {
		cancel()
		it.Stop()
		for range incoming { // until the reader has ended
		}
	}()
	j.note("settle", nil)
	for {
		batch := gatherReceipts(ctx, incoming, j.cfg.SettleReceipts, j.cfg.SettleLinger)
		if len(batch) == 0 {
			if ctx.Err() != nil {
				return nil
			}
			return <-broken
		}
		if err := j.settle(ctx, batch); err != nil {
			return err
		}
	}
}

// readReceipts hands over what the iterator brings until it breaks. A receipt that cannot
// be read is terminated: its batch stays unsettled and is retransmitted.
func (j *Janitor) readReceipts(ctx context.Context, it jetstream.MessagesContext, out chan<- receiptMsg) error {
	for {
		msg, err := it.Next()
		if err != nil {
			return fmt.Errorf("read the receipts: %w", err)
		}
		receipt, err := parseReceipt(msg.Data())
		if err != nil {
			j.metrics.malformed()
			j.log.Error("malformed receipt dropped; its batches will be retransmitted", "error", err)
			if err := msg.TermWithReason("malformed"); err != nil {
				return fmt.Errorf("terminate a malformed receipt: %w", err)
			}
			continue
		}
		select {
		case out <- receiptMsg{receipt, msg}:
		case <-ctx.Done():
			return nil
		}
	}
}

// gatherReceipts waits for a receipt and then for company. It returns nothing when the
// channel is closed or ctx ends.
func gatherReceipts(ctx context.Context, in <-chan receiptMsg, most int, linger time.Duration) []receiptMsg {
	var batch []receiptMsg
	select {
	case m, ok := <-in:
		if !ok {
			return nil
		}
		batch = append(batch, m)
	case <-ctx.Done():
		return nil
	}
	timer := time.NewTimer(linger)
	defer timer.Stop()
	for len(batch) < most {
		select {
		case m, ok := <-in:
			if !ok {
				return batch
			}
			batch = append(batch, m)
		case <-timer.C:
			return batch
		}
	}
	return batch
}

// settle commits the receipts and then acks them. It tries for as long as ctx lasts: the
// outcome of a failed commit does not matter, since applying a receipt again changes
// nothing.
func (j *Janitor) settle(ctx context.Context, batch []receiptMsg) error {
	receipts := make([]Receipt, len(batch))
	for i, m := range batch {
		receipts[i] = m.receipt
	}
	for {
		start := time.Now()
		done, err := bounded(ctx, func(ctx context.Context) (Settled, error) { return j.store.Settle(ctx, receipts) })
		j.metrics.settled(done, len(batch), time.Since(start), err)
		if err == nil {
			break
		}
		if isDataError(err) && len(batch) > 1 {
			return j.settleEach(ctx, batch)
		}
		if isDataError(err) {
			j.log.Error("Postgres refused a receipt; its batches will be retransmitted", "error", err)
			return batch[0].msg.TermWithReason("refused by Postgres")
		}
		j.note("settle", err)
		pause(ctx, time.Second)
		if ctx.Err() != nil {
			return nil
		}
	}
	j.note("settle", nil)
	for _, m := range batch {
		if err := m.msg.Ack(); err != nil {
			return fmt.Errorf("ack a receipt: %w", err)
		}
	}
	return nil
}

// settleEach finds the receipt that spoils the transaction of all.
func (j *Janitor) settleEach(ctx context.Context, batch []receiptMsg) error {
	for _, m := range batch {
		if err := j.settle(ctx, []receiptMsg{m}); err != nil {
			return err
		}
	}
	return nil
}

// isDataError reports that Postgres refused the values themselves.
func isDataError(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (pgErr.Code[:2] == "22" || pgErr.Code[:2] == "23")
}
