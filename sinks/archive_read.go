package sinks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/klauspost/compress/zstd"
)

// maxObjectDecoded bounds the memory that one object may take, far above what a writer
// puts into one.
const maxObjectDecoded = 1 << 30

// ArchiveReader reads what an Archive wrote, also while it writes.
type ArchiveReader struct {
	objects archiveObjects
	decoder *zstd.Decoder // of DecodeAll, which may be called concurrently
}

// Record is one archived event.
type Record struct {
	Lane   int
	Offset int64 // in the lane, from 0, dense
	// Line is the CloudEvent in structured JSON, without the newline.
	Line []byte

	Source, Type, ID string
	Seqnum           int64 // within (Source, Type), from 1
	Position         int64 // pipeline.Position of the event; of a requeued one its new position
}

// ArchiveGapError says that a lane has no object for some offsets, although it has some
// before and after.
type ArchiveGapError struct {
	Lane     int
	From, To int64 // the first offset that is missing and the first that is there again
}

func (e *ArchiveGapError) Error() string {
	return fmt.Sprintf("archive lane %d: the events from offset %d to %d are missing; objects were deleted", e.Lane, e.From, e.To-1)
}

// NewArchiveReader makes a reader of the archive in bucket under prefix; timeout bounds
// one request. The client is one of NewS3Client.
func NewArchiveReader(client *s3.Client, bucket, prefix string, timeout time.Duration) (*ArchiveReader, error) {
	if bucket == "" {
		return nil, errors.New("archive reader: the bucket is empty: name the bucket of the archive")
	}
	if timeout <= 0 {
		return nil, fmt.Errorf("archive reader: the timeout is %s: want more than 0, such as 30s", timeout)
	}
	if err := checkArchivePrefix(prefix); err != nil {
		return nil, err
	}
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(maxObjectDecoded))
	if err != nil {
		return nil, fmt.Errorf("archive reader: zstd: %w", err)
	}
	return &ArchiveReader{objects: newArchiveObjects(client, bucket, prefix, timeout), decoder: decoder}, nil
}

// Lanes returns the lanes that hold anything, in order.
func (r *ArchiveReader) Lanes(ctx context.Context) ([]int, error) {
	var lanes []int
	pages := s3.NewListObjectsV2Paginator(r.objects.client, &s3.ListObjectsV2Input{
		Bucket: aws.String(r.objects.bucket), Prefix: aws.String(r.objects.prefix + "lane="), Delimiter: aws.String("/"),
	})
	for pages.HasMorePages() {
		page, err := r.lanesPage(ctx, pages)
		if err != nil {
			return nil, fmt.Errorf("list the lanes of s3://%s/%s: %w", r.objects.bucket, r.objects.prefix, err)
		}
		for _, common := range page.CommonPrefixes {
			digits := strings.TrimPrefix(aws.ToString(common.Prefix), r.objects.prefix+"lane=")
			lane, err := strconv.Atoi(strings.TrimSuffix(digits, "/"))
			if err == nil {
				lanes = append(lanes, lane)
			}
		}
	}
	slices.Sort(lanes)
	return lanes, nil
}

func (r *ArchiveReader) lanesPage(ctx context.Context, pages *s3.ListObjectsV2Paginator) (*s3.ListObjectsV2Output, error) {
	ctx, cancel := context.WithTimeout(ctx, r.objects.timeout)
	defer cancel()
	return pages.NextPage(ctx)
}

// End returns the offset that the lane's next event will have; 0 for an empty lane.
func (r *ArchiveReader) End(ctx context.Context, lane int) (int64, error) {
	last, ok, err := r.objects.last(ctx, lane, 0)
	if err != nil || !ok {
		return 0, err
	}
	frame, err := r.objects.frame(ctx, lane, last)
	if err != nil {
		return 0, err
	}
	return frame.end(), nil
}

// Begin returns the offset of the first event of the lane that is there, and when the newest of those
// before it was accepted, which were deleted, as a lifecycle rule does. Of a lane from which nothing
// was deleted, or which is empty, these are 0 and the zero time.
func (r *ArchiveReader) Begin(ctx context.Context, lane int) (offset int64, deleted time.Time, err error) {
	offsets, _, err := r.objects.list(ctx, lane, 0)
	if err != nil || len(offsets) == 0 || offsets[0] == 0 {
		return 0, time.Time{}, err
	}
	frame, err := r.objects.frame(ctx, lane, offsets[0])
	if err != nil {
		return 0, time.Time{}, err
	}
	return frame.Offset, time.UnixMicro(frame.Previous).UTC(), nil
}

// Records yields the events of a lane from offset since to the end as it is when the
// reader gets there, in order. Where the oldest events were deleted it starts at the first
// that is there. It ends after an error; one that is an *ArchiveGapError may be passed by
// starting again at its To. One object at a time is in memory.
func (r *ArchiveReader) Records(ctx context.Context, lane int, since int64) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		err := r.read(ctx, lane, min(max(since, 0), math.MaxInt64-1), func(record Record) bool { return yield(record, nil) })
		if err != nil {
			yield(Record{Lane: lane}, err)
		}
	}
}

// read calls visit until that returns false, and then returns nil.
func (r *ArchiveReader) read(ctx context.Context, lane int, since int64, visit func(Record) bool) error {
	// The object that covers since is the last one that does not start after it.
	from := since
	covering, err := r.objects.preceding(ctx, lane, since+1, 1, 1)
	if err != nil {
		return err
	}
	if len(covering) > 0 {
		from = covering[0]
	}
	next := int64(-1)
	for more := true; more; {
		var offsets []int64
		if offsets, more, err = r.objects.list(ctx, lane, from); err != nil {
			return err
		}
		for _, offset := range offsets {
			if next >= 0 && offset != next {
				return &ArchiveGapError{Lane: lane, From: next, To: offset}
			}
			lines, err := r.object(ctx, lane, offset)
			if err != nil {
				return err
			}
			if goOn, err := visitLines(lane, offset, since, lines, visit); err != nil || !goOn {
				return err
			}
			next = offset + int64(len(lines))
			from = offset + 1
		}
	}
	return nil
}

// object returns the lines of an object, as many as it says it has.
func (r *ArchiveReader) object(ctx context.Context, lane int, offset int64) ([][]byte, error) {
	key := r.objects.key(lane, offset)
	data, _, err := r.objects.get(ctx, key, "")
	if err != nil {
		return nil, err
	}
	_, lines, err := r.open(key, offset, data)
	return lines, err
}

// open takes an object apart: its list of batches, and its lines, as many as that says.
func (r *ArchiveReader) open(key string, offset int64, data []byte) (*archiveFrame, [][]byte, error) {
	frame, err := r.objects.parse(key, offset, data)
	if err != nil {
		return nil, nil, err
	}
	text, err := r.decoder.DecodeAll(data, nil)
	if err != nil {
		return nil, nil, r.objects.damaged(key, err)
	}
	lines := bytes.Split(bytes.TrimSuffix(text, []byte{'\n'}), []byte{'\n'})
	if int64(len(lines)) != frame.Events {
		return nil, nil, r.objects.damaged(key, fmt.Errorf("it has %d lines and says that it has %d", len(lines), frame.Events))
	}
	return frame, lines, nil
}

func visitLines(lane int, offset, since int64, lines [][]byte, visit func(Record) bool) (goOn bool, err error) {
	for i, line := range lines {
		at := offset + int64(i)
		if at < since {
			continue
		}
		record, err := parseRecord(line)
		if err != nil {
			return false, fmt.Errorf("archive lane %d, offset %d: %w", lane, at, err)
		}
		record.Lane, record.Offset = lane, at
		if !visit(record) {
			return false, nil
		}
	}
	return true, nil
}

func parseRecord(line []byte) (Record, error) {
	var attributes struct {
		Source   string `json:"source"`
		Type     string `json:"type"`
		ID       string `json:"id"`
		Seqnum   int64  `json:"seqnum,string"`
		Position int64  `json:"waybillposition,string"`
	}
	if err := json.Unmarshal(line, &attributes); err != nil {
		return Record{}, fmt.Errorf("the line is no archived event: %w", err)
	}
	return Record{
		Line: line, Source: attributes.Source, Type: attributes.Type, ID: attributes.ID,
		Seqnum: attributes.Seqnum, Position: attributes.Position,
	}, nil
}
