// Package livestate takes down what the live path of a pipeline knows, so that two states can be
// compared: streams, the sinks' work queues, buckets and tables.
package livestate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
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

// State is what the live path knows, by what knows it.
type State map[string]string

// Changes names what is not the same in another state.
func (s State) Changes(after State) []string {
	var out []string
	all := maps.Clone(s)
	maps.Copy(all, after)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if s[name] != after[name] {
			out = append(out, fmt.Sprintf("%s: %s, before: %s", name, after[name], s[name]))
		}
	}
	return out
}

// Still returns the state, as read reads it, once it does not change any more.
func Still(ctx context.Context, read func(context.Context) (State, error)) (State, error) {
	before, err := read(ctx)
	for began := time.Now(); err == nil && time.Since(began) < stillLimit; {
		select {
		case <-time.After(stillPoll):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		var after State
		if after, err = read(ctx); err == nil && len(before.Changes(after)) == 0 {
			return after, nil
		}
		before = after
	}
	return nil, errors.Join(err, fmt.Errorf("the system does not come to rest within %v", stillLimit))
}

// Queue adds streams, consumers and buckets. It leaves out what changes without any event: the
// values of leases and heartbeats, and who waits for messages.
func (s State) Queue(ctx context.Context, js jetstream.JetStream) error {
	for _, name := range []string{pipeline.EventsStream, pipeline.ReceiptsStream} {
		if err := s.stream(ctx, js, name); err != nil {
			return fmt.Errorf("state of the live path: %w", err)
		}
	}
	buckets := js.KeyValueStoreNames(ctx)
	for bucket := range buckets.Name() {
		if !slices.Contains(pipeline.LiveBuckets(), bucket) {
			continue
		}
		if err := s.bucket(ctx, js, bucket); err != nil {
			return fmt.Errorf("state of the live path: bucket %s: %w", bucket, err)
		}
	}
	if err := buckets.Error(); err != nil {
		return fmt.Errorf("state of the live path: %w", err)
	}
	return nil
}

func (s State) stream(ctx context.Context, js jetstream.JetStream, name string) error {
	stream, err := js.Stream(ctx, name)
	if err != nil {
		return err
	}
	info := stream.CachedInfo()
	config, err := json.Marshal(info.Config)
	if err != nil {
		return err
	}
	s["stream "+name] = fmt.Sprintf("%d messages of %d bytes, %d to %d, made %s as %s", info.State.Msgs, info.State.Bytes,
		info.State.FirstSeq, info.State.LastSeq, info.Created.UTC().Format(time.RFC3339Nano), config)
	consumers := stream.ListConsumers(ctx)
	for info := range consumers.Info() {
		if info.Config.Durable != "" {
			s["consumer "+info.Name] = fmt.Sprintf("delivered %d and %d, floor %d and %d, %d to be acked, %d again, %d pending, made %s",
				info.Delivered.Consumer, info.Delivered.Stream, info.AckFloor.Consumer, info.AckFloor.Stream,
				info.NumAckPending, info.NumRedelivered, info.NumPending, info.Created.UTC().Format(time.RFC3339Nano))
		}
	}
	return consumers.Err()
}

// bucket adds the keys of a bucket, and of those that only events change the revisions too.
func (s State) bucket(ctx context.Context, js jetstream.JetStream, name string) error {
	kv, err := js.KeyValue(ctx, name)
	if err != nil {
		return err
	}
	keys, err := kv.Keys(ctx)
	if err != nil && !errors.Is(err, jetstream.ErrNoKeysFound) {
		return err
	}
	slices.Sort(keys)
	if pipeline.ChangesByItself(name) {
		s["bucket "+name] = strings.Join(keys, " ")
		return nil
	}
	var text strings.Builder
	for _, key := range keys {
		entry, err := kv.Get(ctx, key)
		if err != nil {
			return err
		}
		fmt.Fprintf(&text, "%s=%s@%d ", key, entry.Value(), entry.Revision())
	}
	s["bucket "+name] = text.String()
	return nil
}

// tableSQL is what each table of the store holds.
var tableSQL = map[string]string{
	"batches":      `SELECT count(*), coalesce(sum(attempts), 0) FROM waybill.batches`,
	"events":       `SELECT count(*), coalesce(sum(position), 0) FROM waybill.events`,
	"dead_letters": `SELECT count(*), coalesce(sum(position), 0) FROM waybill.dead_letters`,
	"key_heads":    `SELECT count(*), coalesce(sum(seqnum), 0) FROM waybill.key_heads`,
	"sinks":        `SELECT count(*), coalesce(sum(hashtext(name)), 0) FROM waybill.sinks`,
}

// Tables adds what the tables hold.
func (s State) Tables(ctx context.Context, conn *pgx.Conn) error {
	for _, table := range slices.Sorted(maps.Keys(tableSQL)) {
		var rows int64
		var sum string
		if err := conn.QueryRow(ctx, tableSQL[table]).Scan(&rows, &sum); err != nil {
			return fmt.Errorf("state of the live path: table %s: %w", table, err)
		}
		s["table "+table] = fmt.Sprintf("%d rows, %s", rows, sum)
	}
	return nil
}
