package bench

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/pipeline"
)

const (
	// stillPoll is the pause between two looks at a system that must be the same in both,
	// stillLimit how long it may take until they are: acks follow the receipts that a drain
	// waits for.
	stillPoll  = 500 * time.Millisecond
	stillLimit = 30 * time.Second
)

// liveState is what the live path knows, by what knows it: streams, the sinks' work queues, tables.
type liveState map[string]string

// changes names what is not the same in another state.
func (s liveState) changes(after liveState) []string {
	var out []string
	all := maps.Clone(s)
	maps.Copy(all, after)
	for _, name := range sortedKeys(all) {
		if s[name] != after[name] {
			out = append(out, fmt.Sprintf("%s: %s, before: %s", name, after[name], s[name]))
		}
	}
	return out
}

// stillState returns the state once it does not change any more.
func (s *System) stillState(ctx context.Context) (liveState, error) {
	before, err := s.liveState(ctx)
	for began := time.Now(); err == nil && time.Since(began) < stillLimit; {
		pause(ctx, stillPoll)
		var after liveState
		if after, err = s.liveState(ctx); err == nil && len(before.changes(after)) == 0 {
			return after, nil
		}
		before = after
	}
	return nil, errors.Join(err, fmt.Errorf("the system does not come to rest within %v", stillLimit))
}

// liveState leaves out what changes without any event: leases, heartbeats, who waits for messages.
func (s *System) liveState(ctx context.Context) (liveState, error) {
	js, err := jetstream.New(s.nats)
	if err != nil {
		return nil, fmt.Errorf("state of the live path: %w", err)
	}
	out := liveState{}
	for _, name := range []string{pipeline.EventsStream, pipeline.ReceiptsStream} {
		stream, err := js.Stream(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("state of the live path: %w", err)
		}
		state := stream.CachedInfo().State
		out["stream "+name] = fmt.Sprintf("%d messages of %d bytes, %d to %d", state.Msgs, state.Bytes, state.FirstSeq, state.LastSeq)
		consumers := stream.ListConsumers(ctx)
		for info := range consumers.Info() {
			if info.Config.Durable != "" {
				out["consumer "+info.Name] = fmt.Sprintf("delivered %d and %d, floor %d and %d, %d to be acked, %d again, %d pending",
					info.Delivered.Consumer, info.Delivered.Stream, info.AckFloor.Consumer, info.AckFloor.Stream,
					info.NumAckPending, info.NumRedelivered, info.NumPending)
			}
		}
		if err := consumers.Err(); err != nil {
			return nil, fmt.Errorf("state of the live path: %w", err)
		}
	}
	return out, s.tableState(ctx, out)
}

// tableSQL is what each table of the store holds.
var tableSQL = map[string]string{
	"batches":      `SELECT count(*), coalesce(sum(attempts), 0) FROM waybill.batches`,
	"events":       `SELECT count(*), coalesce(sum(position), 0) FROM waybill.events`,
	"dead_letters": `SELECT count(*), coalesce(sum(position), 0) FROM waybill.dead_letters`,
	"key_heads":    `SELECT count(*), coalesce(sum(seqnum), 0) FROM waybill.key_heads`,
}

func (s *System) tableState(ctx context.Context, out liveState) error {
	if s.databaseURL == "" {
		return nil
	}
	conn, err := s.postgres(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }() // it only reads
	for _, table := range sortedKeys(tableSQL) {
		var rows int64
		var sum string
		if err := conn.QueryRow(ctx, tableSQL[table]).Scan(&rows, &sum); err != nil {
			return fmt.Errorf("state of the live path: table %s: %w", table, err)
		}
		out["table "+table] = fmt.Sprintf("%d rows, %s", rows, sum)
	}
	return nil
}
