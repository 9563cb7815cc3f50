package sinks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/klauspost/compress/zstd"

	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/pipeline/failpoint"
)

const (
	// appendAttempts is how often one Send meets an object of somebody else where it
	// wants to append. Each time somebody made progress; then the lane worker's backoff
	// is better than going on.
	appendAttempts = 8
	// cursorEvery and cursorTimeout keep a slow store of hints out of the lane's way.
	cursorEvery   = 5 * time.Second
	cursorTimeout = time.Second
)

var _ pipeline.Sink = (*Archive)(nil)

// Archive is the sink that appends to an S3 bucket, each accepted event once.
//
// # The log
//
// A lane is a chain of objects <prefix>/lane=<NN>/<offset>.ndjson.zst: zstd-compressed
// lines of structured CloudEvents, named by the offset of their first line in the lane.
// Offsets start at 0 and are dense, so that an object's end is the name of the next. It is
// written with If-None-Match: of all who append to the same end, one succeeds, and the
// others get 412, read what the winner wrote and go on behind it. No lease is needed for
// that, and a request whose answer was lost is simply made again.
//
// Every object ends with a list of its batches (archive_frame.go). These lists, and
// nothing else, say what the archive holds. Each batch is looked up before it is appended:
// in memory, where the newest lists are, and as far back as the watermarks in the lists
// say that it could be.
//
// Objects must not be deleted from the middle or the end of a lane. A lifecycle rule may
// delete old ones, if they are older than any event may become before it is archived.
//
// # What becomes of an event
//
// Every event is Delivered, or the whole Send fails and is to be tried again. There are
// two exceptions. An event whose encoding is malformed, which no ingest lets in, is
// Refused with the code MALFORMED_EVENT. And where ArchiveConfig.Partial allows for parts
// of batches, an event of whose batch the lane holds another part is Refused with the code
// HELD_IN_PART.
type Archive struct {
	cfg     ArchiveConfig
	objects archiveObjects
	log     *slog.Logger
	metrics *archiveMetrics
	encoder *zstd.Encoder // of EncodeAll, which may be called concurrently

	mu    sync.Mutex
	lanes map[int]*archiveLog // under mu; each has a mutex of its own
}

// NewArchive makes the sink. It sends nothing yet. The client is one of NewS3Client.
func NewArchive(client *s3.Client, cfg ArchiveConfig) (*Archive, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	metrics, err := newArchiveMetrics(cfg)
	if err != nil {
		return nil, fmt.Errorf("archive: metrics: %w", err)
	}
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)))
	if err != nil {
		return nil, fmt.Errorf("archive: zstd: %w", err)
	}
	return &Archive{
		cfg: cfg, metrics: metrics, encoder: encoder,
		objects: newArchiveObjects(client, cfg.Bucket, cfg.Prefix, cfg.Timeout),
		log:     cfg.Log.With(slog.String("sink", cfg.Name)),
		lanes:   make(map[int]*archiveLog),
	}, nil
}

// Name is the sink's name in Postgres's table of sinks.
func (a *Archive) Name() string { return a.cfg.Name }

// Limits are those of the configuration.
func (a *Archive) Limits() pipeline.Limits { return a.cfg.limits() }

// lane returns the lane's log, which Send locks.
func (a *Archive) lane(lane int) *archiveLog {
	a.mu.Lock()
	defer a.mu.Unlock()
	l, ok := a.lanes[lane]
	if !ok {
		l = newArchiveLog(a.objects, lane, a.cfg.RememberedBatches)
		a.lanes[lane] = l
	}
	return l
}

// Send appends the events that the lane does not hold yet, as one object. items are whole
// batches, unless ArchiveConfig.Partial allows for less. After an error some or all of them may be archived; the next Send finds out.
func (a *Archive) Send(ctx context.Context, lane int, items []pipeline.Item) ([]pipeline.Result, error) {
	request, err := newArchiveRequest(items, a.cfg.Partial)
	if err != nil {
		return nil, fmt.Errorf("archive lane %d: %w", lane, err)
	}
	l := a.lane(lane)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := a.deliver(ctx, l, request); err != nil {
		return nil, fmt.Errorf("archive lane %d: %w", lane, err)
	}
	return request.results(), nil
}

func (a *Archive) deliver(ctx context.Context, l *archiveLog, request *archiveRequest) error {
	if !l.fresh() {
		if err := l.load(ctx, a.hint(ctx, l)); err != nil {
			return err
		}
	}
	for range appendAttempts {
		err := a.attempt(ctx, l, request)
		if err == nil {
			a.metrics.duplicates(ctx, request.duplicates)
			a.remember(ctx, l)
			return nil
		}
		if !errors.Is(err, errObjectExists) {
			return err
		}
		a.metrics.conflict(ctx)
		if err := l.catchUp(ctx); err != nil {
			return fmt.Errorf("read what somebody else appended: %w", err)
		}
	}
	return fmt.Errorf("somebody else appended first, %d times in a row", appendAttempts)
}

// attempt appends what the lane does not hold, if anything.
func (a *Archive) attempt(ctx context.Context, l *archiveLog, request *archiveRequest) error {
	if err := request.plan(ctx, l); err != nil || len(request.entries) == 0 {
		return err
	}
	return a.append(ctx, l, request)
}

// append writes the planned events at the end of the lane; errObjectExists if that was
// not the end.
func (a *Archive) append(ctx context.Context, l *archiveLog, request *archiveRequest) error {
	frame := request.frame(l)
	lines := request.lines()
	body := frame.append(a.encoder.EncodeAll(lines, make([]byte, 0, len(lines)/3+len(frame.Entries)*16)))
	start := time.Now()
	failpoint.Hit("forwarder/before-put")
	err := failpoint.Err("forwarder/after-put", a.objects.put(ctx, a.objects.key(l.lane, frame.Offset), body))
	a.metrics.put(ctx, err, time.Since(start), int(frame.Events), request.size, len(body))
	if err != nil {
		return err
	}
	l.extend(frame)
	l.used = time.Now()
	return nil
}

// hint is where to begin looking for the end of the lane.
func (a *Archive) hint(ctx context.Context, l *archiveLog) int64 {
	if l.loaded {
		return l.last
	}
	if a.cfg.Cursors == nil {
		return 0
	}
	ctx, cancel := context.WithTimeout(ctx, cursorTimeout)
	defer cancel()
	offset, ok, err := a.cfg.Cursors.Load(ctx, l.lane)
	if err != nil {
		a.log.WarnContext(ctx, "no cursor, looking for the end of the lane without",
			slog.Int("lane", l.lane), slog.Any("error", err))
	}
	if err != nil || !ok {
		return 0
	}
	return offset
}

// remember stores the cursor, unless that was done a moment ago.
func (a *Archive) remember(ctx context.Context, l *archiveLog) {
	if a.cfg.Cursors == nil || l.end == 0 || time.Since(l.hinted) < cursorEvery {
		return
	}
	l.hinted = time.Now()
	ctx, cancel := context.WithTimeout(ctx, cursorTimeout)
	defer cancel()
	if err := a.cfg.Cursors.Store(ctx, l.lane, l.last); err != nil {
		a.log.WarnContext(ctx, "the cursor was not stored; a takeover will look for the end of the lane longer",
			slog.Int("lane", l.lane), slog.Any("error", err))
	}
}
