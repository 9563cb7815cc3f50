package pipeline

import (
	"context"
	_ "embed"
	"fmt"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/proto"
)

var (
	//go:embed sql/split_sound.sql
	splitSoundSQL string
	//go:embed sql/split_damaged.sql
	splitDamagedSQL string
)

// CodeDamaged is the code of a dead letter whose row in events is missing, or is not the event
// that was accepted: nothing can be delivered of it.
const CodeDamaged = "DAMAGED"

// damagedBatch is a batch that was taken apart, and the dead letters that came of it.
type damagedBatch struct {
	id      BatchID
	letters map[SinkCode]int
}

// rows is what was found of a batch's events.
type rows struct {
	sound   []int64 // positions
	damaged []int64 // positions, and
	reasons []string
	surplus bool // there are more than the batch says
}

// take looks at the row at index of a batch of count events, the next one in order.
func (r *rows) take(number int64, index, count int, damage string) {
	r.missing(number, min(index, count))
	switch {
	case damage != "":
		r.damaged, r.reasons = append(r.damaged, Position(number, index)), append(r.reasons, damage)
	default:
		r.sound = append(r.sound, Position(number, index))
	}
	r.surplus = r.surplus || index >= count
}

// missing notes the rows that should have come before index and did not.
func (r *rows) missing(number int64, index int) {
	for next := len(r.sound) + len(r.damaged); next < index; next++ {
		r.damaged = append(r.damaged, Position(number, next))
		r.reasons = append(r.reasons, "its row is missing from the table events: its source, type, id and seqnum are unknown")
	}
}

// whole reports that the batch can be sent as it is.
func (r *rows) whole() bool { return len(r.damaged) == 0 && !r.surplus }

// damageOf says why a row is not the event that its other columns name, or nothing.
func damageOf(source, typ, id string, encoded []byte) string {
	var ce pb.CloudEvent
	if err := proto.Unmarshal(encoded, &ce); err != nil {
		return "its encoding cannot be decoded: " + plainText(err.Error(), 256)
	}
	for _, f := range []struct{ name, have, want string }{
		{"id", ce.Id, id}, {"source", ce.Source, source}, {"type", ce.Type, typ},
	} {
		if f.have != f.want || f.have == "" {
			return fmt.Sprintf("its encoding has another %s (%s) than its row", f.name, plainText(f.have, 256))
		}
	}
	return ""
}

// split takes a damaged batch apart, in the transaction that claimed it: what is damaged
// becomes dead letters, which it counts, what is sound waits alone.
func (r *rows) split(ctx context.Context, tx pgx.Tx, number int64) (letters map[SinkCode]int, err error) {
	if len(r.damaged) > 0 {
		if letters, err = r.bury(ctx, tx, number); err != nil {
			return nil, fmt.Errorf("take the damaged batch %d apart: %w", number, err)
		}
	}
	b := &pgx.Batch{}
	if len(r.sound) > 0 {
		b.Queue(splitSoundSQL, number, r.sound)
	}
	b.Queue(deleteBatchesSQL, []int64{number})
	b.Queue(deleteEventsSQL, []int64{Position(number, 0)}, []int64{Position(number+1, 0)})
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return nil, fmt.Errorf("take the damaged batch %d apart: %w", number, err)
	}
	return letters, nil
}

// bury makes dead letters of the damaged events.
func (r *rows) bury(ctx context.Context, tx pgx.Tx, number int64) (map[SinkCode]int, error) {
	found, err := tx.Query(ctx, splitDamagedSQL, planAnew, number, r.damaged, r.reasons)
	if err != nil {
		return nil, err
	}
	letters := map[SinkCode]int{}
	var sink string
	_, err = pgx.ForEachRow(found, []any{&sink}, func() error {
		letters[SinkCode{sink, CodeDamaged}]++
		return nil
	})
	return letters, err
}
