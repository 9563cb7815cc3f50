package sinks

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/waybillhq/waybill/pipeline"
)

// ArchiveObject is an object of the archive as the bucket lists it.
type ArchiveObject struct {
	Lane     int
	Offset   int64  // of its first event
	Key      string // with the prefix
	Bytes    int64
	Modified time.Time
}

// ArchiveContents is what is in an object, once it was read and found sound.
type ArchiveContents struct {
	Records []Record
	Batches []ListedBatch
}

// ListedBatch is a batch as an object lists it.
type ListedBatch struct {
	ID       pipeline.BatchID
	Events   int // in the object
	Accepted time.Time
}

// Objects yields the objects of a lane in the order of their offsets, from the first one that does not
// begin before from. An error that comes with a Key is of that object alone, whose name is none of
// the archive's; it may be passed by. Any other ends it.
func (r *ArchiveReader) Objects(ctx context.Context, lane int, from int64) iter.Seq2[ArchiveObject, error] {
	return func(yield func(ArchiveObject, error) bool) {
		o := r.objects
		pages := s3.NewListObjectsV2Paginator(o.client, &s3.ListObjectsV2Input{
			Bucket: aws.String(o.bucket), Prefix: aws.String(o.lanePrefix(lane)),
			StartAfter: aws.String(o.before(lane, max(from, 0))), MaxKeys: aws.Int32(o.page),
		})
		for pages.HasMorePages() {
			page, err := r.lanesPage(ctx, pages)
			if err != nil {
				yield(ArchiveObject{Lane: lane}, fmt.Errorf("list lane %d of s3://%s/%s: %w", lane, o.bucket, o.prefix, err))
				return
			}
			for _, listed := range page.Contents {
				object := ArchiveObject{
					Lane: lane, Key: aws.ToString(listed.Key), Bytes: aws.ToInt64(listed.Size), Modified: aws.ToTime(listed.LastModified),
				}
				object.Offset, err = o.parseKey(lane, object.Key)
				if !yield(object, err) {
					return
				}
			}
		}
	}
}

// ErrDamaged means that an object is there and is not what the archive wrote.
var ErrDamaged = errors.New("damaged")

// Read reads an object whole, and checks all there is to check in it by itself: the checksums of S3, of
// the compression and of the list of batches; that its list agrees with its name and with its lines;
// and that each line is an event with a seqnum. The error is ErrDamaged where that is not so, and
// another one where it could not be read.
func (r *ArchiveReader) Read(ctx context.Context, object ArchiveObject) (ArchiveContents, error) {
	data, _, err := r.objects.get(ctx, object.Key, "")
	if err != nil {
		return ArchiveContents{}, err
	}
	frame, lines, err := r.open(object.Key, object.Offset, data)
	if err != nil {
		return ArchiveContents{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	var out ArchiveContents
	for _, e := range frame.Entries {
		out.Batches = append(out.Batches, ListedBatch{ID: e.ID, Events: e.Events, Accepted: time.UnixMicro(e.Accepted).UTC()})
	}
	_, err = visitLines(object.Lane, object.Offset, object.Offset, lines, func(record Record) bool {
		out.Records = append(out.Records, record)
		return true
	})
	for _, record := range out.Records {
		if err == nil && (record.Seqnum < 1 || record.ID == "" || record.Source == "" || record.Type == "") {
			err = fmt.Errorf("archive lane %d, offset %d: the line has no id, source, type or seqnum", record.Lane, record.Offset)
		}
	}
	if err != nil {
		return ArchiveContents{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return out, nil
}

// OffsetSince returns the offset of the first object of a lane that may hold an event that was accepted
// at or after a time by Postgres's clock, or the lane's end: all before it is older. It reads the ends
// of some tens of objects, however many there are.
func (r *ArchiveReader) OffsetSince(ctx context.Context, lane int, since time.Time) (int64, error) {
	last, ok, err := r.objects.last(ctx, lane, 0)
	if err != nil || !ok {
		return 0, err
	}
	frame, err := r.objects.frame(ctx, lane, last)
	if err != nil {
		return 0, err
	}
	if frame.Watermark < archiveTime(since) {
		return frame.end(), nil
	}
	// Watermarks grow with the offsets. What is below low is older; the answer is at found, or at an
	// object from low on and below high.
	low, high, found := int64(0), last, last
	for low < high {
		middle := low + (high-low)/2
		offsets, _, err := r.objects.list(ctx, lane, middle)
		if err != nil {
			return 0, err
		}
		if len(offsets) == 0 || offsets[0] >= high {
			high = middle
			continue
		}
		if frame, err = r.objects.frame(ctx, lane, offsets[0]); err != nil {
			return 0, err
		}
		if frame.Watermark < archiveTime(since) {
			low = frame.end()
		} else {
			high, found = offsets[0], offsets[0]
		}
	}
	return found, nil
}
