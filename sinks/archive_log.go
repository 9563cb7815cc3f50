package sinks

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/waybillhq/waybill/pipeline"
)

const (
	// scanFirst and scanMost are how many frames one step of a walk back reads: few at
	// first, since most walks end soon, then more, so that a long one takes few LISTs.
	scanFirst = 4
	scanMost  = 512
	// laneIdle is how long what is known of a lane is trusted without a request to it.
	// Somebody else may have written it since, and, if that is very long ago, a lifecycle
	// rule may have deleted the object that would tell.
	laneIdle = 5 * time.Minute
)

// archiveLog is one lane of the archive: a chain of objects, each named by the offset at
// which the one before it ends, so that of all who want to append one succeeds. mu is
// held for a whole Send.
type archiveLog struct {
	objects archiveObjects
	lane    int
	bound   int // batches to remember

	mu     sync.Mutex
	loaded bool
	used   time.Time // end of the last successful request
	hinted time.Time // when the cursor was stored last

	end       int64 // offset of the next object
	watermark int64 // of the last object
	last      int64 // offset of the last object; end when the lane is empty

	// The newest objects of the lane, oldest first, and the batches that they list.
	covered []coveredObject
	batches int
	set     *archiveSet
	// floor is the watermark of the newest object that is not covered; noWatermark when
	// there is none. A batch accepted after it is in the set or not in the lane.
	floor int64
}

// coveredObject is an object whose batches are in the set.
type coveredObject struct {
	offset, events, watermark int64
	plain                     []pipeline.BatchID
	special                   []archiveEntry // of requeued events and batches with events left out
}

func newArchiveLog(objects archiveObjects, lane, bound int) *archiveLog {
	return &archiveLog{objects: objects, lane: lane, bound: bound}
}

// fresh reports whether what is known of the lane may be used.
func (l *archiveLog) fresh() bool { return l.loaded && time.Since(l.used) < laneIdle }

// load finds the end of the lane, from hint on.
func (l *archiveLog) load(ctx context.Context, hint int64) error {
	l.loaded = false
	last, ok, err := l.objects.last(ctx, l.lane, hint)
	if err != nil {
		return fmt.Errorf("find the end of lane %d: %w", l.lane, err)
	}
	l.end, l.last, l.watermark, l.floor = 0, 0, noWatermark, noWatermark
	l.covered, l.batches, l.set = nil, 0, newArchiveSet()
	if ok {
		frame, err := l.objects.frame(ctx, l.lane, last)
		if err != nil {
			return fmt.Errorf("find the end of lane %d: %w", l.lane, err)
		}
		l.floor = frame.Previous
		l.extend(frame)
	}
	l.loaded, l.used = true, time.Now()
	return nil
}

// extend adds the object that was appended to the lane, and forgets old ones for it.
func (l *archiveLog) extend(frame *archiveFrame) {
	l.covered = append(l.covered, l.remember(frame))
	l.last, l.end, l.watermark = frame.Offset, frame.end(), frame.Watermark
	for l.batches > l.bound && len(l.covered) > 1 {
		l.evict()
	}
}

// remember puts an object's batches into the set.
func (l *archiveLog) remember(frame *archiveFrame) coveredObject {
	object := coveredObject{offset: frame.Offset, events: frame.Events, watermark: frame.Watermark}
	object.plain = make([]pipeline.BatchID, 0, len(frame.Entries))
	for i := range frame.Entries {
		entry := &frame.Entries[i]
		l.set.add(entry)
		if entry.special() {
			object.special = append(object.special, *entry)
		} else {
			object.plain = append(object.plain, entry.ID)
		}
	}
	l.batches += len(frame.Entries)
	return object
}

// evict forgets the oldest object, and so raises the floor.
func (l *archiveLog) evict() {
	oldest := l.covered[0]
	l.covered[0] = coveredObject{} // the array behind the slice lives on for a while
	l.covered = l.covered[1:]
	for _, id := range oldest.plain {
		l.set.forget(id)
	}
	for i := range oldest.special {
		l.set.forgetSpecial(&oldest.special[i])
	}
	l.batches -= len(oldest.plain) + len(oldest.special)
	l.floor = oldest.watermark
}

// catchUp reads what others appended since end was the end. It is called after a 412, so
// there is something.
func (l *archiveLog) catchUp(ctx context.Context) error {
	found := false
	for more := true; more; {
		offsets, truncated, err := l.objects.list(ctx, l.lane, l.end)
		if err != nil {
			return err
		}
		for chunk := range slices.Chunk(offsets, scanMost) {
			if err := l.follow(ctx, chunk); err != nil {
				return err
			}
			found = true
		}
		more = truncated
	}
	if !found {
		return fmt.Errorf("the server says that %s exists, and does not list it", l.objects.key(l.lane, l.end))
	}
	l.used = time.Now()
	return nil
}

// follow extends the log by objects that are in the bucket.
func (l *archiveLog) follow(ctx context.Context, offsets []int64) error {
	frames, err := l.objects.frames(ctx, l.lane, offsets)
	if err != nil {
		return err
	}
	for _, frame := range frames {
		if frame.Offset != l.end || frame.Previous != l.watermark {
			return l.objects.damaged(l.objects.key(l.lane, frame.Offset),
				fmt.Errorf("it does not follow the object before it, which ends at offset %d", l.end))
		}
		l.extend(frame)
	}
	return nil
}

// errBound ends a walk back that has no room for more batches.
var errBound = errors.New("the bound of remembered batches is reached")

// cover walks back until every object that may hold a batch accepted at or after the
// given time is covered. It reports false when the bound forbids that.
func (l *archiveLog) cover(ctx context.Context, accepted int64) (bool, error) {
	var older []coveredObject
	err := l.walk(ctx, accepted, func(frame *archiveFrame) error {
		if l.batches+len(frame.Entries) > l.bound {
			return errBound
		}
		older = append(older, l.remember(frame))
		l.floor = frame.Previous
		return nil
	})
	slices.Reverse(older)
	l.covered = append(older, l.covered...) // what was read before an error counts
	if errors.Is(err, errBound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	l.floor = min(l.floor, accepted-1) // the walk may have ended at the start of the lane
	return true, nil
}

// scan walks back like cover and keeps only the batches that are wanted, so that it needs
// no memory for the others. wanted holds batches and, for requeued ones, their origins.
func (l *archiveLog) scan(ctx context.Context, accepted int64, wanted map[pipeline.BatchID]struct{}) (*archiveSet, error) {
	set := newArchiveSet()
	return set, l.walk(ctx, accepted, func(frame *archiveFrame) error {
		for i := range frame.Entries {
			entry := &frame.Entries[i]
			_, hit := wanted[entry.ID]
			if !hit && entry.Origin != nil {
				_, hit = wanted[entry.Origin.Batch]
			}
			if hit {
				set.add(entry)
			}
		}
		return nil
	})
}

// walk visits the objects before the covered ones, newest first, as long as their
// watermark is not below accepted.
func (l *archiveLog) walk(ctx context.Context, accepted int64, visit func(*archiveFrame) error) error {
	if len(l.covered) == 0 || l.floor < accepted {
		return nil
	}
	before, span := l.covered[0].offset, l.covered[0].events
	for count := scanFirst; before > 0; count = min(count*4, scanMost) {
		offsets, err := l.objects.preceding(ctx, l.lane, before, count, span*int64(count))
		if err != nil {
			return err
		}
		if len(offsets) == 0 {
			return nil
		}
		frames, err := l.objects.frames(ctx, l.lane, offsets)
		if err != nil {
			return fmt.Errorf("look for earlier batches: %w", err)
		}
		for _, frame := range slices.Backward(frames) {
			if frame.Watermark < accepted {
				return nil
			}
			if err := visit(frame); err != nil {
				return err
			}
		}
		span = max(1, (before-offsets[0])/int64(len(offsets)))
		before = offsets[0]
	}
	return nil
}
