package replay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/waybillhq/waybill/pipeline"
)

// span is what a replay reads, fixed when it begins, so that one that is resumed ends where it would
// have ended.
type span struct {
	From string `json:"from"` // stream or archive
	// Since and Until bound when the events were accepted; zero: unbounded.
	Since time.Time `json:"since,omitzero"`
	Until time.Time `json:"until,omitzero"`

	// Of the stream: when it was made, and the sequences to be read. Beyond Body only what was
	// queued late is looked for, by headers.
	Created time.Time `json:"created,omitzero"`
	First   uint64    `json:"first,omitempty"`
	Body    uint64    `json:"body,omitempty"`
	Last    uint64    `json:"last,omitempty"`

	// Of the archive: where each lane ends.
	Ends map[int]int64 `json:"ends,omitempty"`
}

// resolve chooses the source and fixes the span.
func (c Config) resolve(ctx context.Context, now time.Time) (span, error) {
	s := span{Since: c.Since.at(now), Until: c.Until.at(now)}
	var history *pipeline.History
	var err error
	if c.From != FromArchive && c.Queue != nil {
		history, err = c.Queue.History(ctx)
		if err != nil && (c.From == FromStream || c.Archive == nil || ctx.Err() != nil || c.sequences()) {
			return s, err
		}
		if err != nil {
			c.warn("the stream cannot be read, so the archive is: %v", err)
		}
	}
	if s.From, err = c.choose(ctx, s.Since, history); err != nil {
		return s, err
	}
	if s.From == FromStream {
		err = c.resolveStream(ctx, &s, history)
	} else {
		err = c.resolveArchive(ctx, &s)
	}
	return s, err
}

func (c Config) sequences() bool { return c.Since.sequence > 0 || c.Until.sequence > 0 }

// choose returns the source: the stream if it reaches back far enough.
func (c Config) choose(ctx context.Context, since time.Time, history *pipeline.History) (string, error) {
	switch {
	case c.From != FromAuto:
		return c.From, nil
	case c.sequences():
		return FromStream, nil
	case history == nil && c.Archive == nil:
		return "", errors.New("--from: neither the stream nor an archive can be read; set --nats-url or --s3-bucket")
	case history == nil:
		return FromArchive, nil
	case since.IsZero() && c.Archive == nil:
		return FromStream, nil
	case since.IsZero():
		return FromArchive, nil
	}
	oldest, ok, err := history.Oldest(ctx)
	if err != nil {
		return "", err
	}
	if ok && !oldest.After(since.Add(-queueMargin)) {
		return FromStream, nil
	}
	if c.Archive == nil {
		reach := "is empty"
		if ok {
			reach = "reaches back to " + oldest.Format(time.RFC3339) + " only, of which five minutes are not counted on"
		}
		return "", fmt.Errorf("--since: %s is beyond the stream, which %s; set --s3-bucket to replay from the archive, or give --from=stream to replay what is there", since.Format(time.RFC3339), reach)
	}
	return FromArchive, nil
}

func (c Config) resolveStream(ctx context.Context, s *span, history *pipeline.History) (err error) {
	s.Created, s.First, s.Last = history.Created, history.First, history.Last
	s.Body = s.Last
	if c.sequences() {
		if c.Until.sequence > 0 {
			s.Last = min(s.Last, c.Until.sequence)
			s.Body = s.Last
		}
		if c.Since.sequence > s.Last+1 {
			return fmt.Errorf("--since: the stream ends at sequence %d; give %d or less", history.Last, history.Last)
		}
		if c.Since.sequence > 0 && c.Since.sequence < s.First {
			c.warn("the stream begins at sequence %d: what was before is not replayed", s.First)
		}
		s.First = max(s.First, c.Since.sequence)
		return nil
	}
	if !s.Since.IsZero() {
		oldest, ok, err := history.Oldest(ctx)
		if err != nil {
			return err
		}
		if ok && s.First > 1 && oldest.After(s.Since) {
			c.warn("the oldest batch in the stream was queued at %s: what was accepted before may not be replayed", oldest.Format(time.RFC3339))
		}
		if s.First, err = history.QueuedAt(ctx, s.Since.Add(-queueMargin)); err != nil {
			return err
		}
	}
	if !s.Until.IsZero() {
		behind, err := history.QueuedAt(ctx, s.Until.Add(queueMargin))
		if err != nil {
			return err
		}
		s.Body = min(behind-1, s.Last)
	}
	return nil
}

func (c Config) resolveArchive(ctx context.Context, s *span) error {
	lanes, err := c.Archive.Lanes(ctx)
	if err != nil {
		return err
	}
	s.Ends = map[int]int64{}
	for _, lane := range lanes {
		if !c.lane(lane) {
			continue
		}
		if s.Ends[lane], err = c.Archive.End(ctx, lane); err != nil {
			return err
		}
	}
	return nil
}
