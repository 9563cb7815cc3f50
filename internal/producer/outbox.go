package producer

import (
	"context"
	"errors"
	"fmt"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/waybillhq/waybill/internal/pgconnect"
	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/pipeline/failpoint"
)

// Outbox emits events into the outbox of a pipeline, each call in a transaction of its own. It is safe
// for concurrent use.
type Outbox struct{ pool *pgxpool.Pool }

var _ Sender = (*Outbox)(nil)

// NewOutbox returns a sender for the pipeline whose database is at a Postgres URL. It connects when
// something is sent.
func NewOutbox(url string) (*Outbox, error) {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil { // whose text may hold the password
		return nil, errors.New("database url: cannot be parsed; want postgres://user:password@host:port/database")
	}
	// Committed is to mean accepted.
	cfg.ConnConfig.RuntimeParams["synchronous_commit"] = "on"
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	return &Outbox{pool: pool}, nil
}

// Close ends the connections.
func (o *Outbox) Close() { o.pool.Close() }

// Send implements Sender. Invalid events are refused, and the others of the call go without them.
func (o *Outbox) Send(ctx context.Context, events []*pb.CloudEvent) []error {
	errs := make([]error, len(events))
	var valid []pipeline.Event
	var places []int
	for i, ce := range events {
		event, err := pipeline.NewEvent(ce, pipeline.DefaultMaxEventBytes)
		if err != nil {
			errs[i] = &RefusedError{Reason: err.Error()}
			continue
		}
		valid, places = append(valid, event), append(places, i)
	}
	if len(valid) == 0 {
		return errs
	}
	err := o.commit(ctx, valid)
	for _, i := range places {
		errs[i] = err
	}
	return errs
}

// commit emits events in one transaction.
func (o *Outbox) commit(ctx context.Context, events []pipeline.Event) error {
	tx, err := o.pool.Begin(ctx)
	if err != nil {
		if told := (*pgconnect.Error)(nil); errors.As(pgconnect.Explain(err, ""), &told) && told.Away() {
			return &TryAgainError{Err: &UnreachableError{Reason: told.Error(), Err: told}}
		}
		return &TryAgainError{Err: fmt.Errorf("begin: %w", pgconnect.Explain(err, ""))}
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // of no interest after the commit
	if err := pipeline.InsertOutbox(ctx, tx, events); err != nil {
		return &TryAgainError{Err: err}
	}
	err = failpoint.Err("waybill/after-emit-commit", tx.Commit(ctx))
	if err == nil {
		return nil
	}
	var answer *pgconn.PgError
	known := errors.As(err, &answer) || errors.Is(err, pgx.ErrTxCommitRollback)
	return &TryAgainError{Unknown: !known, Err: fmt.Errorf("commit: %w", err)}
}
