package sinks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/proto"

	"github.com/waybillhq/waybill/pipeline"
)

// archiveKit is a bucket of a test's own and what the test does with it.
type archiveKit struct {
	t      testing.TB
	bucket string
}

func newArchiveKit(t testing.TB) *archiveKit {
	k := &archiveKit{t: t, bucket: fmt.Sprintf("test-%016x", rand.Uint64())}
	mustNil(t, testS3.CreateBucket(t.Context(), k.bucket))
	return k
}

// faults is an HTTP client that can lose requests and answers. It counts requests by
// method.
type faults struct {
	next http.RoundTripper
	// fault returns what happens to a request; nil: nothing.
	fault atomic.Pointer[func(*http.Request) fault]
	mu    sync.Mutex
	count map[string]int
}

type fault int

const (
	pass       fault = iota
	loseBefore       // the request never arrives
	loseAfter        // the answer never arrives
)

var errLost = errors.New("the connection was lost")

func (f *faults) Do(req *http.Request) (*http.Response, error) {
	f.mu.Lock()
	f.count[req.Method]++
	f.mu.Unlock()
	what := pass
	if decide := f.fault.Load(); decide != nil {
		what = (*decide)(req)
	}
	if what == loseBefore {
		return nil, errLost
	}
	resp, err := f.next.RoundTrip(req)
	if what == loseAfter && err == nil {
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		return nil, errLost
	}
	return resp, err
}

func (f *faults) counted(method string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count[method]
}

func (f *faults) set(decide func(*http.Request) fault) { f.fault.Store(&decide) }

func (k *archiveKit) client(endpoint string, attempts int) (*s3.Client, *faults) {
	k.t.Helper()
	f := &faults{next: http.DefaultTransport, count: make(map[string]int)}
	client, err := NewS3Client(k.t.Context(), k.s3Config(endpoint), func(o *s3.Options) {
		o.HTTPClient = f
		o.Retryer = retry.NewStandard(func(o *retry.StandardOptions) {
			o.MaxAttempts, o.MaxBackoff = attempts, time.Millisecond
		})
	})
	mustNil(k.t, err)
	return client, f
}

func (k *archiveKit) s3Config(endpoint string) S3Config {
	cfg := DefaultS3Config()
	cfg.Endpoint, cfg.PathStyle = endpoint, true
	cfg.AccessKey, cfg.SecretKey = testS3.AccessKey, testS3.SecretKey
	return cfg
}

// archive makes a sink whose client does not retry by itself, and its faults.
func (k *archiveKit) archive(change ...func(*ArchiveConfig)) (*Archive, *faults) {
	k.t.Helper()
	client, f := k.client(testS3.Endpoint, 1)
	return k.archiveWith(client, change...), f
}

// archiveOf is an archive without faults.
func (k *archiveKit) archiveOf(change ...func(*ArchiveConfig)) *Archive {
	k.t.Helper()
	a, _ := k.archive(change...)
	return a
}

func (k *archiveKit) archiveWith(client *s3.Client, change ...func(*ArchiveConfig)) *Archive {
	k.t.Helper()
	cfg := DefaultArchiveConfig()
	cfg.Bucket, cfg.Log = k.bucket, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	for _, c := range change {
		c(&cfg)
	}
	a, err := NewArchive(client, cfg)
	mustNil(k.t, err)
	return a
}

func (k *archiveKit) reader() *ArchiveReader {
	k.t.Helper()
	client, _ := k.client(testS3.Endpoint, 3)
	r, err := NewArchiveReader(client, k.bucket, "waybill", 10*time.Second)
	mustNil(k.t, err)
	return r
}

// records reads a lane and fails unless its offsets are dense.
func (k *archiveKit) records(lane int) []Record {
	k.t.Helper()
	var records []Record
	for record, err := range k.reader().Records(k.t.Context(), lane, 0) {
		mustNil(k.t, err)
		if record.Offset != int64(len(records)) {
			k.t.Fatalf("offset %d follows %d", record.Offset, len(records)-1)
		}
		records = append(records, record)
	}
	return records
}

// wantIDs fails unless the lane holds exactly these events, in this order.
func (k *archiveKit) wantIDs(lane int, want ...string) {
	k.t.Helper()
	var got []string
	for _, record := range k.records(lane) {
		got = append(got, record.ID)
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		k.t.Fatalf("lane %d holds %q, want %q", lane, got, want)
	}
}

// keys lists the objects of a lane.
func (k *archiveKit) keys(lane int) []int64 {
	k.t.Helper()
	offsets, _, err := k.reader().objects.list(k.t.Context(), lane, 0)
	mustNil(k.t, err)
	return offsets
}

// plant writes an object past the archive.
func (k *archiveKit) plant(key string, body []byte) {
	k.t.Helper()
	client, _ := k.client(testS3.Endpoint, 3)
	_, err := client.PutObject(k.t.Context(), &s3.PutObjectInput{
		Bucket: aws.String(k.bucket), Key: aws.String(key), Body: strings.NewReader(string(body)),
	})
	mustNil(k.t, err)
}

func (k *archiveKit) remove(key string) {
	k.t.Helper()
	client, _ := k.client(testS3.Endpoint, 3)
	_, err := client.DeleteObject(k.t.Context(), &s3.DeleteObjectInput{Bucket: aws.String(k.bucket), Key: aws.String(key)})
	mustNil(k.t, err)
}

// mustArchive sends whole batches and fails unless all are delivered.
func mustArchive(t testing.TB, a *Archive, lane int, batches ...*pipeline.Batch) {
	t.Helper()
	if err := tryArchive(t.Context(), a, lane, batches...); err != nil {
		t.Fatal(err)
	}
}

func tryArchive(ctx context.Context, a *Archive, lane int, batches ...*pipeline.Batch) error {
	items := wholeBatches(batches...)
	results, err := a.Send(ctx, lane, items)
	if err != nil {
		return err
	}
	if len(results) != len(items) {
		return fmt.Errorf("%d results for %d items", len(results), len(items))
	}
	for i, result := range results {
		if result.Verdict != pipeline.Delivered {
			return fmt.Errorf("item %d: %+v", i, result)
		}
	}
	return nil
}

func wholeBatches(batches ...*pipeline.Batch) []pipeline.Item {
	var items []pipeline.Item
	for _, b := range batches {
		for i := range b.Events {
			items = append(items, pipeline.Item{Batch: b, Index: i})
		}
	}
	return items
}

// epoch is when the batches of tests were accepted.
var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// batchOf is batch number of events with the ids "<number>.0", "<number>.1" and so on,
// accepted that many seconds after the epoch.
func batchOf(number int64, events int) *pipeline.Batch {
	b := &pipeline.Batch{
		ID:         pipeline.BatchID{Number: number, Token: uint64(number) * 0x9e3779b97f4a7c15},
		AcceptedAt: epoch.Add(time.Duration(number) * time.Second),
	}
	for i := range events {
		b.Events = append(b.Events, encodedEvent(fmt.Sprintf("%d.%d", number, i), int64(i+1)))
	}
	return b
}

// requeueOf is a batch with one event of b, dead-lettered before.
func requeueOf(number int64, b *pipeline.Batch, index int) *pipeline.Batch {
	return &pipeline.Batch{
		ID:         pipeline.BatchID{Number: number, Token: uint64(number) * 0x9e3779b97f4a7c15},
		AcceptedAt: b.AcceptedAt,
		Origin:     &pipeline.Origin{Batch: b.ID, Index: index},
		Events:     [][]byte{b.Events[index]},
	}
}

// retransmitOf is the same batch in another message.
func retransmitOf(b *pipeline.Batch) *pipeline.Batch {
	again := *b
	again.Attempt++
	return &again
}

func encodedEvent(id string, seqnum int64) []byte {
	return mustEncode(&pb.CloudEvent{
		Id: id, Source: "/tests", SpecVersion: "1.0", Type: "test.made",
		Attributes: map[string]*pb.CloudEventAttributeValue{
			"seqnum":          ceString(strconv.FormatInt(seqnum, 10)),
			"datacontenttype": ceString("application/json"),
		},
		Data: &pb.CloudEvent_BinaryData{BinaryData: []byte(`{"id": "` + id + `"}`)},
	})
}

func ceString(s string) *pb.CloudEventAttributeValue {
	return &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeString{CeString: s}}
}

func mustEncode(ce *pb.CloudEvent) []byte {
	encoded, err := proto.Marshal(ce)
	if err != nil {
		panic(err)
	}
	return encoded
}

func mustNil(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantError fails unless the error holds all the words.
func wantError(t testing.TB, err error, words ...string) {
	t.Helper()
	for _, word := range words {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Fatalf("got the error %v, want one with %q", err, word)
		}
	}
}

// hints is a store of cursors in memory.
type hints struct {
	mu      sync.Mutex
	offsets map[int]int64
	err     error
}

func (h *hints) Load(_ context.Context, lane int) (int64, bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	offset, ok := h.offsets[lane]
	return offset, ok, h.err
}

func (h *hints) Store(_ context.Context, lane int, offset int64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err == nil {
		h.offsets[lane] = offset
	}
	return h.err
}
