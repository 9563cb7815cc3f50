package sinks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"golang.org/x/sync/errgroup"
)

const (
	archiveSuffix = ".ndjson.zst"
	offsetDigits  = 20
	// frameTail is what the first GET of a frame reads: the frame of some 4,000 batches.
	frameTail = 64 << 10
	// frameReads is how many frames of a lane are read at once.
	frameReads = 8
	// listPage is the most that one LIST returns.
	listPage = 1000
)

// errObjectExists is the 412 of a conditional PUT.
var errObjectExists = errors.New("the object exists already")

// archiveObjects is the bucket as the archive sees it: objects named by lane and offset.
type archiveObjects struct {
	client  *s3.Client
	bucket  string
	prefix  string // with a slash at its end, or empty
	timeout time.Duration
	page    int32 // most keys of one LIST
}

func newArchiveObjects(client *s3.Client, bucket, prefix string, timeout time.Duration) archiveObjects {
	if prefix != "" {
		prefix += "/"
	}
	return archiveObjects{client: client, bucket: bucket, prefix: prefix, timeout: timeout, page: listPage}
}

func (o archiveObjects) lanePrefix(lane int) string {
	return fmt.Sprintf("%slane=%02d/", o.prefix, lane)
}

// before is below the key of offset and above all keys of lower offsets.
func (o archiveObjects) before(lane int, offset int64) string {
	return fmt.Sprintf("%s%0*d", o.lanePrefix(lane), offsetDigits, offset)
}

func (o archiveObjects) key(lane int, offset int64) string {
	return o.before(lane, offset) + archiveSuffix
}

// parseKey is the inverse of key.
func (o archiveObjects) parseKey(lane int, key string) (int64, error) {
	digits := strings.TrimSuffix(strings.TrimPrefix(key, o.lanePrefix(lane)), archiveSuffix)
	offset, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || offset < 0 || o.key(lane, offset) != key {
		return 0, o.damaged(key, errors.New("its name is not that of an archive object"))
	}
	return offset, nil
}

// damaged says that an object stands where the log needs one of its own. Going on past it
// could archive events twice, and over it could lose what it holds.
func (o archiveObjects) damaged(key string, err error) error {
	return fmt.Errorf("s3://%s/%s cannot be used: %w; restore an earlier version of it, or move it out of the "+
		"archive's prefix if something else put it there", o.bucket, key, err)
}

// list returns the offsets of a lane's objects that are not below from, in order, one
// page of them, and whether there are more.
func (o archiveObjects) list(ctx context.Context, lane int, from int64) (offsets []int64, more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	page, err := o.client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{
		Bucket: aws.String(o.bucket), Prefix: aws.String(o.lanePrefix(lane)),
		StartAfter: aws.String(o.before(lane, from)), MaxKeys: aws.Int32(o.page),
	})
	if err != nil {
		return nil, false, fmt.Errorf("list lane %d from offset %d: %w", lane, from, err)
	}
	for _, object := range page.Contents {
		offset, err := o.parseKey(lane, aws.ToString(object.Key))
		if err != nil {
			return nil, false, err
		}
		offsets = append(offsets, offset)
	}
	return offsets, aws.ToBool(page.IsTruncated) && len(offsets) > 0, nil
}

// last finds the last object of a lane: from hint on if there is anything, else from the
// start, with steps that double and then halve, for there may be a million objects. An
// object that is written meanwhile may or may not be found.
func (o archiveObjects) last(ctx context.Context, lane int, hint int64) (offset int64, ok bool, err error) {
	offsets, more, err := o.list(ctx, lane, max(hint, 0))
	if err == nil && len(offsets) == 0 && hint > 0 {
		offsets, more, err = o.list(ctx, lane, 0)
	}
	if err != nil || len(offsets) == 0 {
		return 0, false, err
	}
	low := offsets[len(offsets)-1] // an object is here
	high := int64(math.MaxInt64)   // none is here or above
	step := min(max(low-offsets[0], 1), math.MaxInt64/4)
	for more {
		at := low + (high-low)/2
		if high == math.MaxInt64 && step < at-low {
			at = low + step
		}
		offsets, truncated, err := o.list(ctx, lane, at)
		if err != nil {
			return 0, false, err
		}
		if len(offsets) > 0 {
			low, more = offsets[len(offsets)-1], truncated
			step = min(step*2, math.MaxInt64/4)
		} else {
			high, more = at, at-low > 1
		}
	}
	return low, true, nil
}

// preceding returns the offsets of about count objects, the newest below before, in
// order; none only if there is none. span is a guess of how many events they hold.
func (o archiveObjects) preceding(ctx context.Context, lane int, before int64, count int, span int64) ([]int64, error) {
	for span = max(span, int64(count)); ; span *= 8 {
		from := int64(0)
		if span > 0 && span < before { // not above zero: it overflowed
			from = before - span
		}
		offsets, err := o.newest(ctx, lane, from, before, count)
		if err != nil || len(offsets) > 0 || from == 0 {
			return offsets, err
		}
	}
}

// newest returns the last count offsets of a range.
func (o archiveObjects) newest(ctx context.Context, lane int, from, before int64, count int) ([]int64, error) {
	var newest []int64
	for more := from < before; more; {
		offsets, truncated, err := o.list(ctx, lane, from)
		if err != nil {
			return nil, err
		}
		more = truncated
		for _, offset := range offsets {
			if offset >= before {
				more = false
				break
			}
			newest = append(newest, offset)
			from = offset + 1
		}
		newest = newest[max(0, len(newest)-count):]
	}
	return newest, nil
}

// put writes an object that must not exist yet; errObjectExists if it does. Any other
// error leaves open whether it was written.
func (o archiveObjects) put(ctx context.Context, key string, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	_, err := o.client.PutObject(ctx, &s3.PutObjectInput{
		Bucket: aws.String(o.bucket), Key: aws.String(key), Body: bytes.NewReader(body),
		IfNoneMatch: aws.String("*"), ContentType: aws.String("application/zstd"),
	})
	if httpStatus(err) == http.StatusPreconditionFailed {
		return errObjectExists
	}
	if err != nil {
		return fmt.Errorf("put s3://%s/%s: %w", o.bucket, key, err)
	}
	return nil
}

// get reads an object or the range of it, such as "bytes=-100", and returns the whole
// object's size too.
func (o archiveObjects) get(ctx context.Context, key, byteRange string) (data []byte, size int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	in := &s3.GetObjectInput{Bucket: aws.String(o.bucket), Key: aws.String(key)}
	if byteRange != "" {
		in.Range = aws.String(byteRange)
	}
	out, err := o.client.GetObject(ctx, in)
	if httpStatus(err) == http.StatusRequestedRangeNotSatisfiable {
		return nil, 0, nil // no byte of it is in the range: it is empty
	}
	if err != nil {
		return nil, 0, fmt.Errorf("get s3://%s/%s: %w", o.bucket, key, err)
	}
	defer func() { _ = out.Body.Close() }() // read to its end or given up
	if data, err = io.ReadAll(out.Body); err != nil {
		return nil, 0, fmt.Errorf("read s3://%s/%s: %w", o.bucket, key, err)
	}
	return data, objectSize(out, len(data)), nil
}

// objectSize is what follows the slash of "bytes 5-9/10".
func objectSize(out *s3.GetObjectOutput, read int) int64 {
	_, total, ok := strings.Cut(aws.ToString(out.ContentRange), "/")
	size, err := strconv.ParseInt(total, 10, 64)
	if !ok || err != nil {
		return int64(read)
	}
	return size
}

// frame reads an object's list of batches, with one GET or, if it is long, two.
func (o archiveObjects) frame(ctx context.Context, lane int, offset int64) (*archiveFrame, error) {
	key := o.key(lane, offset)
	tail, total, err := o.get(ctx, key, fmt.Sprintf("bytes=-%d", frameTail))
	if err != nil {
		return nil, err
	}
	size, err := frameSize(tail)
	if err != nil {
		return nil, o.damaged(key, err)
	}
	if int64(size) > total {
		return nil, o.damaged(key, errors.New("its list of batches claims to be larger than the object"))
	}
	if size > len(tail) {
		if tail, _, err = o.get(ctx, key, fmt.Sprintf("bytes=%d-%d", total-int64(size), total-1)); err != nil {
			return nil, err
		}
	}
	return o.parse(key, offset, tail)
}

// parse reads the frame at the end of data, which is (the tail of) the object at offset.
func (o archiveObjects) parse(key string, offset int64, data []byte) (*archiveFrame, error) {
	size, err := frameSize(data)
	if err == nil && size > len(data) {
		err = errors.New("its list of batches is cut off")
	}
	if err != nil {
		return nil, o.damaged(key, err)
	}
	frame, err := parseFrame(data[len(data)-size:])
	if err == nil && frame.Offset != offset {
		err = fmt.Errorf("it says that it starts at offset %d", frame.Offset)
	}
	if err != nil {
		return nil, o.damaged(key, err)
	}
	return frame, nil
}

// frames reads several frames at once and returns them in the order of offsets.
func (o archiveObjects) frames(ctx context.Context, lane int, offsets []int64) ([]*archiveFrame, error) {
	frames := make([]*archiveFrame, len(offsets))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(frameReads)
	for i, offset := range offsets {
		group.Go(func() (err error) {
			frames[i], err = o.frame(ctx, lane, offset)
			return err
		})
	}
	return frames, group.Wait()
}

// httpStatus is the status of the response behind an error; 0 where there was none.
func httpStatus(err error) int {
	var response *awshttp.ResponseError
	if errors.As(err, &response) {
		return response.HTTPStatusCode()
	}
	return 0
}
