package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/pipeline"
)

// storeEvents makes the events of a load as the front ends of ingest hand them to the store.
type storeEvents struct {
	ledger *ledger
	keys   []event // one of each key
}

func newStoreEvents(l *ledger, load Load) (*storeEvents, error) {
	m := &storeEvents{ledger: l}
	data := []byte(strings.Repeat("x", load.Bytes))
	for key := range load.Keys {
		e, err := newEvent(l.run, key, data, false)
		if err != nil {
			return nil, err
		}
		m.keys = append(m.keys, e)
	}
	return m, nil
}

// take makes n events of keys drawn by r, which are numbered from first on.
func (m *storeEvents) take(r *rand.Rand, n int) (events []pipeline.Event, first int64) {
	first = m.ledger.reserve(n, time.Now())
	events = make([]pipeline.Event, n)
	for i := range events {
		key := &m.keys[r.IntN(len(m.keys))]
		encoded := append([]byte(nil), key.encoded...)
		id := encoded[idAt : idAt+eventIDBytes]
		m.ledger.writeID(id, first+int64(i))
		events[i] = pipeline.Event{Source: key.source, Type: key.typ, ID: string(id), Encoded: encoded}
	}
	return events, first
}

// makeHeads gives all keys their places among the heads: who measures how heads are moved does not
// measure how they are made.
func (m *storeEvents) makeHeads(ctx context.Context, conn *pgx.Conn) error {
	sources, types := make([]string, len(m.keys)), make([]string, len(m.keys))
	for i := range m.keys {
		sources[i], types[i] = m.keys[i].source, m.keys[i].typ
	}
	if _, err := conn.Exec(ctx, `SELECT waybill.add_keys($1, $2)`, sources, types); err != nil {
		return fmt.Errorf("make the heads: %w", err)
	}
	return nil
}
