package bench

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/waybillhq/waybill/pipeline"
)

// outboxSender makes a transaction of each call, as a service does: it stores a row of its own, emits the call's
// events, and commits.
type outboxSender struct{ pool *pgxpool.Pool }

// outboxOrdersSQL is the service's own table.
const outboxOrdersSQL = `CREATE TABLE IF NOT EXISTS public.bench_orders (id bigserial PRIMARY KEY, what text NOT NULL)`

func newOutboxSender(url string, connections int) (*outboxSender, error) {
	if url == "" {
		return nil, errors.New("the outbox needs the database: give --database-url")
	}
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, errors.New("database url: cannot be parsed")
	}
	cfg.MaxConns, cfg.MinConns = int32(connections), int32(connections)
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	if _, err := pool.Exec(context.Background(), outboxOrdersSQL); err != nil {
		pool.Close()
		return nil, fmt.Errorf("make the service's table: %w", err)
	}
	return &outboxSender{pool}, nil
}

func (s *outboxSender) close() error { s.pool.Close(); return nil }

func (s *outboxSender) send(ctx context.Context, c *call) outcome {
	events, err := eventsOf(c)
	if err != nil {
		return outcome{err: err}
	}
	return s.transaction(ctx, events)
}

// transaction makes one that emits events, or none.
func (s *outboxSender) transaction(ctx context.Context, events []pipeline.Event) outcome {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	tx, err := s.begin(ctx, events)
	if err != nil {
		return outcome{err: err}
	}
	if err := tx.Commit(ctx); err != nil {
		_ = tx.Rollback(ctx) // of no interest
		var answer *pgconn.PgError
		return outcome{err: fmt.Errorf("commit: %w", err), unknown: !errors.As(err, &answer) && !errors.Is(err, pgx.ErrTxCommitRollback)}
	}
	return outcome{}
}

// rollback makes a transaction that is taken back.
func (s *outboxSender) rollback(ctx context.Context, events []pipeline.Event) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	tx, err := s.begin(ctx, events)
	if err != nil {
		return err
	}
	return tx.Rollback(ctx)
}

// begin does all of a transaction but for its end.
func (s *outboxSender) begin(ctx context.Context, events []pipeline.Event) (pgx.Tx, error) {
	tx, err := s.pool.Begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("begin: %w", err)
	}
	if _, err = tx.Exec(ctx, `INSERT INTO public.bench_orders (what) VALUES ($1)`, "an order"); err != nil {
		err = fmt.Errorf("store a row: %w", err)
	} else {
		err = pipeline.InsertOutbox(ctx, tx, events)
	}
	if err != nil {
		_ = tx.Rollback(ctx) // of no interest
		return nil, err
	}
	return tx, nil
}

// eventsOf are a call's events, with their ids, as EmitTx makes them.
func eventsOf(c *call) ([]pipeline.Event, error) {
	wire := make([]byte, len(c.message.wire))
	c.message.fill(wire, c.ledger, c.first)
	events := make([]pipeline.Event, 0, c.events())
	var scan pipeline.Scan
	err := eachBytes(wire, eventsField, func(encoded []byte) error {
		if !scan.Read(encoded) {
			return protowire.ParseError(-1)
		}
		e, ok := scan.Event("")
		if !ok {
			return errors.New("an event without an id")
		}
		e.Encoded = encoded
		events = append(events, e)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the call's own events: %w", err)
	}
	return events, nil
}
