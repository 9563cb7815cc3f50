package sinks

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"time"

	"github.com/waybillhq/waybill/pipeline"
)

// ArchiveSpan says what of a lane is wanted. The zero value is all of it.
type ArchiveSpan struct {
	// From and To bound the offsets, the first included and the second not; a To of 0: to the end.
	// A batch belongs to the offset of its first event.
	// Offsets that are missing are an error from From on, if that is above 0, and up to To, if that is
	// given and nothing else ends the span before.
	From, To int64
	// Since and Until bound the time at which a batch was accepted, the first included and the
	// second not. Zero: unbounded.
	Since, Until time.Time
	// Late is how long after it was accepted a batch may have been archived and still be found.
	// Objects whose batches, and those of all objects before, were accepted later than Until and
	// Late are not looked at. It counts where there is an Until.
	Late time.Duration
}

// ArchivedBatch is what the archive holds of one batch. A batch stands in one object.
type ArchivedBatch struct {
	ID         pipeline.BatchID
	Lane       int
	Offset     int64 // of its first event
	Events     int   // in the archive
	AcceptedAt time.Time
	Origin     *pipeline.Origin // of a requeued event
	// Dropped are the indexes, rising, of events of the batch that the archive does not hold with it.
	Dropped []int
	Records []Record // of its events, in order
}

// Batches yields what the archive holds of each batch in the span, in the order of the lane. Errors
// are as those of Records. The objects' lists are read some at a time, and of the objects only those
// that hold a batch that is wanted.
func (r *ArchiveReader) Batches(ctx context.Context, lane int, span ArchiveSpan) iter.Seq2[*ArchivedBatch, error] {
	return func(yield func(*ArchivedBatch, error) bool) {
		w := &spanWalk{reader: r, lane: lane, span: span, next: -1, watermark: noWatermark, visit: func(b *ArchivedBatch) bool { return yield(b, nil) }}
		if err := w.walk(ctx); err != nil && !errors.Is(err, errWalked) {
			yield(nil, err)
		}
	}
}

// errWalked ends a walk that needs to go no further.
var errWalked = errors.New("nothing more is wanted")

// spanLists is how many lists of batches are read at once.
const spanLists = 64

// spanWalk is one call of Batches.
type spanWalk struct {
	reader *ArchiveReader
	lane   int
	span   ArchiveSpan
	next   int64 // offset of the object that must come next; -1: any
	// watermark is that of the newest object that was looked at.
	watermark int64
	visit     func(*ArchivedBatch) bool
}

// walk returns errWalked where it ends before the lane does.
func (w *spanWalk) walk(ctx context.Context) error {
	objects := w.reader.objects
	bounded := w.span.To > 0
	if !bounded {
		w.span.To = math.MaxInt64
	}
	from, err := w.start(ctx)
	if err != nil {
		return err
	}
	begin := from
	for more := true; more && from < w.span.To; {
		var offsets []int64
		if offsets, more, err = objects.list(ctx, w.lane, from); err != nil {
			return err
		}
		for len(offsets) > 0 {
			some := offsets[:min(spanLists, len(offsets))]
			frames, err := objects.frames(ctx, w.lane, some)
			if err != nil {
				return err
			}
			for _, frame := range frames {
				if err := w.object(ctx, frame); err != nil {
					return err
				}
			}
			from, offsets = some[len(some)-1]+1, offsets[len(some):]
		}
	}
	if end := max(begin, w.next, w.span.From); bounded && end < w.span.To && !w.tooLate(w.watermark) {
		return &ArchiveGapError{Lane: w.lane, From: end, To: w.span.To}
	}
	return nil
}

// start returns the offset of the first object that may hold something wanted. It is an error if the
// first offset that is wanted by its number is before all objects.
func (w *spanWalk) start(ctx context.Context) (int64, error) {
	from := max(w.span.From, 0)
	covering, err := w.reader.objects.preceding(ctx, w.lane, min(from, math.MaxInt64-1)+1, 1, 1)
	if err != nil {
		return 0, err
	}
	switch {
	case len(covering) > 0:
		from = covering[0]
	case from > 0 && from < w.span.To:
		first, _, err := w.reader.objects.list(ctx, w.lane, from)
		if err != nil {
			return 0, err
		}
		if len(first) > 0 {
			return 0, &ArchiveGapError{Lane: w.lane, From: from, To: first[0]}
		}
	}
	if w.span.Since.IsZero() {
		return from, nil
	}
	since, err := w.reader.OffsetSince(ctx, w.lane, w.span.Since)
	return max(from, since), err
}

// tooLate says that nothing is looked for behind an object with a watermark.
func (w *spanWalk) tooLate(watermark int64) bool {
	return !w.span.Until.IsZero() && watermark >= archiveTime(w.span.Until.Add(w.span.Late))
}

// object visits the batches of an object that are wanted.
func (w *spanWalk) object(ctx context.Context, frame *archiveFrame) error {
	switch {
	case w.tooLate(w.watermark):
		return errWalked
	case w.next >= 0 && frame.Offset < w.next:
		return w.reader.objects.damaged(w.reader.objects.key(w.lane, frame.Offset),
			fmt.Errorf("it begins before the object before it ends, which is at offset %d", w.next))
	case w.next >= 0 && w.next < w.span.To && frame.Offset > w.next:
		return &ArchiveGapError{Lane: w.lane, From: w.next, To: frame.Offset}
	case frame.Offset >= w.span.To, w.tooLate(frame.Previous):
		return errWalked
	}
	w.watermark = frame.Watermark
	w.next = frame.end()
	batches := w.wanted(frame)
	if len(batches) == 0 {
		return nil
	}
	lines, err := w.reader.object(ctx, w.lane, frame.Offset)
	if err != nil {
		return err
	}
	for _, b := range batches {
		if err := w.records(b, frame.Offset, lines); err != nil {
			return err
		}
		if !w.visit(b) {
			return errWalked
		}
	}
	return nil
}

// wanted are the batches of an object that are in the span.
func (w *spanWalk) wanted(frame *archiveFrame) (batches []*ArchivedBatch) {
	offset := frame.Offset
	for i := range frame.Entries {
		e := &frame.Entries[i]
		accepted := time.UnixMicro(e.Accepted).UTC()
		at := offset
		offset += int64(e.Events)
		if at < w.span.From || at >= w.span.To || accepted.Before(w.span.Since) || !w.span.Until.IsZero() && !accepted.Before(w.span.Until) {
			continue
		}
		batches = append(batches, &ArchivedBatch{
			ID: e.ID, Lane: w.lane, Offset: at, Events: e.Events, AcceptedAt: accepted, Origin: e.Origin, Dropped: e.Dropped,
		})
	}
	return batches
}

// records gives a batch its events, of the lines of the object at an offset.
func (w *spanWalk) records(b *ArchivedBatch, object int64, lines [][]byte) error {
	b.Records = make([]Record, 0, b.Events)
	index := -1
	for i := range b.Events {
		at := b.Offset + int64(i)
		record, err := parseRecord(lines[at-object])
		if err != nil {
			return fmt.Errorf("archive lane %d, offset %d: %w", w.lane, at, err)
		}
		number, n := pipeline.SplitPosition(record.Position)
		if number != b.ID.Number || n <= index {
			return w.reader.objects.damaged(w.reader.objects.key(w.lane, object),
				fmt.Errorf("the event at offset %d is not of batch %v, as its list of batches says", at, b.ID))
		}
		index = n
		record.Lane, record.Offset = w.lane, at
		b.Records = append(b.Records, record)
	}
	return nil
}
