// Package archivecheck reads an archive from its beginning to its end and looks for what the log must
// never have: missing offsets, objects that are not what was written, and events that are there twice.
package archivecheck

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/waybillhq/waybill/internal/seqset"
	"github.com/waybillhq/waybill/sinks"
)

// MaxFindings bounds the findings that a report names; the rest is counted.
const MaxFindings = 100

// Finding is one thing that is wrong.
type Finding struct {
	Lane   int    `json:"lane"`
	Offset int64  `json:"offset"`
	Key    string `json:"key,omitempty"` // of the object, where it is one's
	Kind   string `json:"kind"`          // missing, overlap, damaged, foreign or double
	What   string `json:"what"`
}

// Lane is what was found in one lane.
type Lane struct {
	Lane    int   `json:"lane"`
	Objects int64 `json:"objects"`
	Events  int64 `json:"events"`
	Bytes   int64 `json:"bytes"`
	// From is the first offset that is there: above 0 where the oldest objects were deleted, as a
	// lifecycle rule may do.
	From int64 `json:"from"`
	To   int64 `json:"to"` // the offset that the next event will have
}

// Report is what a check found.
type Report struct {
	Lanes  []Lane `json:"lanes"`
	Events int64  `json:"events"`
	Bytes  int64  `json:"bytes"`
	// Bad is how many things are wrong; Findings are the first of them.
	Bad      int64     `json:"bad"`
	Findings []Finding `json:"findings,omitempty"`
	Seconds  float64   `json:"took_seconds"`
}

// Progress is told after each object.
type Progress func(lane int, objects, events int64)

// key is the unit of order, whose seqnums no two events have.
type key struct{ source, typ string }

// checker holds the state of one Check.
type checker struct {
	reader *sinks.ArchiveReader
	report Report
	seen   map[key]*seqset.Set
	tell   Progress
	count  int64 // objects
}

// Check reads the lanes, all that there are where none is named, one object at a time. Memory is some
// hundred bytes for each key. An error means that it could not read on, with what was found before.
func Check(ctx context.Context, reader *sinks.ArchiveReader, lanes []int, tell Progress) (Report, error) {
	began := time.Now()
	c := &checker{reader: reader, seen: map[key]*seqset.Set{}, tell: tell}
	err := c.run(ctx, lanes)
	c.report.Seconds = time.Since(began).Seconds()
	return c.report, err
}

func (c *checker) run(ctx context.Context, lanes []int) (err error) {
	if len(lanes) == 0 {
		if lanes, err = c.reader.Lanes(ctx); err != nil {
			return err
		}
	}
	for _, lane := range lanes {
		if err := c.lane(ctx, lane); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) find(object sinks.ArchiveObject, offset int64, kind, format string, args ...any) {
	c.report.Bad++
	if len(c.report.Findings) < MaxFindings {
		c.report.Findings = append(c.report.Findings, Finding{object.Lane, offset, object.Key, kind, fmt.Sprintf(format, args...)})
	}
}

// lane goes on behind what is wrong. Of an object that cannot be read it is not known where the next
// one must begin.
func (c *checker) lane(ctx context.Context, lane int) error {
	l := Lane{Lane: lane, From: -1}
	next := int64(-1) // where the next object must begin; -1: not known
	for object, err := range c.reader.Objects(ctx, lane, 0) {
		if err != nil && object.Key == "" {
			return err
		}
		if err != nil {
			c.find(object, object.Offset, "foreign", "%v", err)
			continue
		}
		l.Objects++
		l.Bytes += object.Bytes
		if l.From < 0 {
			l.From = object.Offset
		}
		switch {
		case next >= 0 && object.Offset > next:
			c.find(object, next, "missing", "the events from offset %d to %d are missing", next, object.Offset-1)
		case next >= 0 && object.Offset < next:
			c.find(object, object.Offset, "overlap", "it begins before the object before it ends, at %d", next)
		}
		contents, err := c.reader.Read(ctx, object)
		switch {
		case errors.Is(err, sinks.ErrDamaged):
			c.find(object, object.Offset, "damaged", "%v", err)
			next, l.To = -1, object.Offset
		case err != nil:
			return err
		default:
			c.events(object, contents)
			l.Events += int64(len(contents.Records))
			next = object.Offset + int64(len(contents.Records))
			l.To = next
		}
		c.count++
		if c.tell != nil {
			c.tell(lane, c.count, c.report.Events+l.Events)
		}
	}
	l.From = max(l.From, 0)
	c.report.Lanes = append(c.report.Lanes, l)
	c.report.Events += l.Events
	c.report.Bytes += l.Bytes
	return nil
}

// events looks for those that were there before, in whatever lane.
func (c *checker) events(object sinks.ArchiveObject, contents sinks.ArchiveContents) {
	for i := range contents.Records {
		r := &contents.Records[i]
		k := key{r.Source, r.Type}
		seen := c.seen[k]
		if seen == nil {
			seen = &seqset.Set{}
			c.seen[k] = seen
		}
		if !seen.Add(r.Seqnum) {
			c.find(object, r.Offset, "double", "event %q, seqnum %d of %s %s, is there twice", r.ID, r.Seqnum, r.Source, r.Type)
		}
	}
}
