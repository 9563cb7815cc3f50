package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/pipeline/failpoint"
)

// receiptMsg is a message of receipts, which is acked after their commit.
type receiptMsg struct {
	receipts []Receipt
	msg      jetstream.Msg
	arrived  time.Time
}

// batches is how many batches the receipts name.
func (m receiptMsg) batches() int {
	n := 0
	for i := range m.receipts {
		n += len(m.receipts[i].Batches)
	}
	return n
}

// settlePullBytes is how many bytes of receipts the server sends ahead at a time.
const settlePullBytes = 16 << 20

// settleReceipts applies receipts until ctx ends or the consumer breaks. Receipts that
// were not acked come again, here or at another janitor.
func (j *Janitor) settleReceipts(ctx context.Context) error {
	consumer, err := j.queue.js.Consumer(ctx, ReceiptsStream, receiptsConsumer)
	if err != nil {
		return fmt.Errorf("open the receipts: %w", err)
	}
	it, err := consumer.Messages(jetstream.PullMaxMessagesWithBytesLimit(j.cfg.SettleReceipts, settlePullBytes),
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
		for m := range incoming { // until the reader has ended
			giveBack(m)
		}
	}()
	j.note("settle", nil)
	for {
		batch := gatherReceipts(ctx, incoming, j.cfg.SettleReceipts, j.cfg.SettleBatches, j.cfg.SettleLinger)
		if len(batch) == 0 {
			if ctx.Err() != nil {
				return nil
			}
			return <-broken
		}
		j.metrics.queue.took(len(batch))
		if err := j.settle(ctx, batch); err != nil {
			return err
		}
	}
}

// readReceipts hands over what the iterator brings until it breaks. A message that cannot
// be read is terminated: its batches stay unsettled and are retransmitted.
func (j *Janitor) readReceipts(ctx context.Context, it jetstream.MessagesContext, out chan<- receiptMsg) error {
	for {
		msg, err := it.Next()
		if err != nil {
			return fmt.Errorf("read the receipts: %w", err)
		}
		receipts, err := parseReceipts(msg.Data())
		if err != nil {
			j.metrics.malformed()
			j.log.Error("malformed receipt dropped; its batches will be retransmitted", "error", err)
			if err := msg.TermWithReason("malformed"); err != nil {
				return fmt.Errorf("terminate a malformed receipt: %w", err)
			}
			continue
		}
		select {
		case out <- receiptMsg{receipts, msg, time.Now()}:
		case <-ctx.Done():
			giveBack(receiptMsg{msg: msg})
			return nil
		}
	}
}

// giveBack lets another janitor have receipts at once.
func giveBack(batch ...receiptMsg) {
	for _, m := range batch {
		_ = m.msg.Nak() // else AckWait sees to it
	}
}

// gatherReceipts waits for a receipt and then for company, until ctx ends. It returns nothing when the
// channel is closed or ctx ends before.
func gatherReceipts(ctx context.Context, in <-chan receiptMsg, most, mostBatches int, linger time.Duration) []receiptMsg {
	var batch []receiptMsg
	batches := 0
	select {
	case m, ok := <-in:
		if !ok {
			return nil
		}
		batch = append(batch, m)
		batches += m.batches()
	case <-ctx.Done():
		return nil
	}
	timer := time.NewTimer(linger)
	defer timer.Stop()
	for len(batch) < most && batches < mostBatches {
		select {
		case m, ok := <-in:
			if !ok {
				return batch
			}
			batch = append(batch, m)
			batches += m.batches()
		case <-timer.C:
			return batch
		case <-ctx.Done():
			return batch
		}
	}
	return batch
}

// settle commits the receipts and then acks them. It tries for as long as ctx lasts: the
// outcome of a failed commit does not matter, since applying a receipt again changes
// nothing.
func (j *Janitor) settle(ctx context.Context, batch []receiptMsg) error {
	var receipts []Receipt
	for _, m := range batch {
		receipts = append(receipts, m.receipts...)
	}
	err := j.commit(ctx, receipts)
	j.metrics.queue.processed(batch[0].arrived, err, storeErrorType)
	switch {
	case err != nil && ctx.Err() != nil:
		giveBack(batch...)
		return nil
	case isDataError(err) && len(batch) > 1:
		// One receipt spoils the transaction of all: find it by taking each alone.
		for _, m := range batch {
			if err := j.settle(ctx, []receiptMsg{m}); err != nil {
				return err
			}
		}
		return nil
	case isDataError(err):
		return j.settleRest(ctx, batch[0])
	case err != nil:
		return err
	}
	failpoint.Hit("janitor/before-ack")
	for _, m := range batch {
		if err := m.msg.Ack(); err != nil {
			return fmt.Errorf("ack a receipt: %w", err)
		}
		failpoint.Hit("janitor/after-ack")
	}
	return nil
}

// settleRest commits those receipts of a message that Postgres does not refuse, each alone.
func (j *Janitor) settleRest(ctx context.Context, m receiptMsg) error {
	for _, r := range m.receipts {
		err := j.commit(ctx, []Receipt{r})
		switch {
		case err != nil && ctx.Err() != nil:
			giveBack(m)
			return nil
		case isDataError(err):
			j.log.Error("Postgres refused a receipt; its batches will be retransmitted", "sink", r.Sink, "lane", r.Lane, "error", err)
		case err != nil:
			return err
		}
	}
	return m.msg.TermWithReason("refused by Postgres")
}

// commit settles receipts, in halves when together they take longer than a statement may, and
// returns when all are committed, or with ctx, or with an error of the data.
func (j *Janitor) commit(ctx context.Context, receipts []Receipt) error {
	for ctx.Err() == nil {
		start := time.Now()
		done, err := bounded(ctx, func(ctx context.Context) (Settled, error) { return j.store.Settle(ctx, receipts) })
		j.metrics.settled(done, len(receipts), err)
		if err == nil {
			j.cfg.Tracing.settled(receipts, start)
			j.note("settle", nil)
			return nil
		}
		if isDataError(err) {
			return err
		}
		if a, b := halves(receipts); isTimeout(err) && len(b) > 0 {
			if err := j.commit(ctx, a); err != nil {
				return err
			}
			receipts = b
			continue
		}
		j.note("settle", err)
		pause(ctx, time.Second)
	}
	return ctx.Err()
}

// halves splits receipts, or the one receipt's batches; b is empty if there is but one batch.
func halves(receipts []Receipt) (a, b []Receipt) {
	if n := len(receipts); n > 1 {
		return receipts[:n/2], receipts[n/2:]
	}
	r := receipts[0]
	n := len(r.Batches)
	if n < 2 {
		return receipts, nil
	}
	first, second := r, r
	first.Batches, second.Batches = r.Batches[:n/2], r.Batches[n/2:]
	return []Receipt{first}, []Receipt{second}
}

// isTimeout reports that a statement or the transaction took too long.
func isTimeout(err error) bool {
	var pgErr *pgconn.PgError
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &pgErr) && pgErr.Code == "57014"
}

// isDataError reports that Postgres refused the values themselves.
func isDataError(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (pgErr.Code[:2] == "22" || pgErr.Code[:2] == "23")
}
