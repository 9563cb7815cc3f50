package pipeline

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/pipeline/failpoint"
)

//go:embed sql/outbox_emit.sql
var outboxEmitSQL string

// EmitTx emits events as part of a transaction of the caller's on the pipeline's database: they
// are accepted when it commits, and never were when it is rolled back. It is one round trip, and
// takes no lock that anybody waits for. The role needs USAGE on the schema waybill.
//
// The error is an *InvalidEventError where an event is invalid or larger than
// DefaultMaxEventBytes, and nothing was sent then; else it is Postgres's, and the transaction can
// only be rolled back.
func EmitTx(ctx context.Context, tx pgx.Tx, events ...CloudEvent) error {
	encoded, err := encodeAllEmitted(ctx, events, DefaultMaxEventBytes, "")
	if err != nil {
		return err
	}
	return InsertOutbox(ctx, tx, encoded)
}

// EmitSQLTx is EmitTx for a transaction of database/sql, with any driver for Postgres.
func EmitSQLTx(ctx context.Context, tx *sql.Tx, events ...CloudEvent) error {
	encoded, err := encodeAllEmitted(ctx, events, DefaultMaxEventBytes, "")
	if err != nil || len(encoded) == 0 {
		return err
	}
	c := outboxColumnsOf(encoded)
	return c.emit(func() error {
		// Arrays as text, which every driver can send.
		_, err := tx.ExecContext(ctx, outboxEmitSQL, textArray(c.sources), textArray(c.types), textArray(c.ids), integerArray(c.sizes), c.all)
		return err
	})
}

// InsertOutbox is EmitTx for events that NewEvent has made.
func InsertOutbox(ctx context.Context, tx pgx.Tx, events []Event) error {
	if len(events) == 0 {
		return nil
	}
	c := outboxColumnsOf(events)
	return c.emit(func() error {
		_, err := tx.Exec(ctx, outboxEmitSQL, c.sources, c.types, c.ids, c.sizes, c.all)
		return err
	})
}

// outboxColumns are the parameters of outbox_emit.sql.
type outboxColumns struct {
	sources, types, ids []string
	sizes               []int32 // of the encodings, which follow one another in all
	all                 []byte
}

// emit runs the statement.
func (c *outboxColumns) emit(exec func() error) error {
	failpoint.Hit("waybill/before-emit")
	if err := exec(); err != nil {
		return fmt.Errorf("emit into the outbox: %w%s", err, emitRemedy(err))
	}
	failpoint.Hit("waybill/after-emit")
	return nil
}

// emitRemedy is what to do about an error of Postgres, of any driver; empty: the error says it.
func emitRemedy(err error) string {
	var refused interface{ SQLState() string }
	if !errors.As(err, &refused) {
		return ""
	}
	switch refused.SQLState() {
	case "3F000", "42883": // no such schema, no such function
		return "; begin the transaction on the pipeline's database, and run `waybill migrate` on that"
	case "42501": // a right is missing
		return "; grant the role USAGE on the schema waybill"
	}
	return ""
}

func outboxColumnsOf(events []Event) *outboxColumns {
	n, bytes := len(events), 0
	c := &outboxColumns{sources: make([]string, n), types: make([]string, n), ids: make([]string, n), sizes: make([]int32, n)}
	for i := range events {
		e := &events[i]
		c.sources[i], c.types[i], c.ids[i], c.sizes[i] = e.Source, e.Type, e.ID, int32(len(e.Encoded))
		bytes += len(e.Encoded)
	}
	if n == 1 {
		c.all = events[0].Encoded
		return c
	}
	c.all = make([]byte, 0, bytes)
	for i := range events {
		c.all = append(c.all, events[i].Encoded...)
	}
	return c
}

// arrayEscapes are those of an array's elements in double quotes (postgresql.org, "Array Input and
// Output Syntax").
var arrayEscapes = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// textArray is the text of a Postgres array.
func textArray(elements []string) string {
	var b strings.Builder
	b.WriteByte('{')
	for i, e := range elements {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte('"')
		_, _ = arrayEscapes.WriteString(&b, e) // a Builder takes everything
		b.WriteByte('"')
	}
	b.WriteByte('}')
	return b.String()
}

// integerArray is the text of a Postgres array of integers.
func integerArray(numbers []int32) string {
	text := make([]byte, 0, 8*len(numbers)+2)
	text = append(text, '{')
	for i, n := range numbers {
		if i > 0 {
			text = append(text, ',')
		}
		text = strconv.AppendInt(text, int64(n), 10)
	}
	return string(append(text, '}'))
}
