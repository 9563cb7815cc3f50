package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/sinks"
)

const (
	// redeliveries are so many batches of redeliveredEvents events; the answer to each first PUT
	// is lost.
	redeliveries, redeliveredEvents = 50, 20
	// redeliveryTries bounds how often a batch is sent until it is known to be stored.
	redeliveryTries = 5
	// takeoverEvery batches another writer goes on, that knows nothing of the ones before.
	takeoverEvery = 10
)

// redelivery sends batches again whose PUT was done and whose answer was lost. Its client makes each
// request once: to try again is the sender's part.
type redelivery struct {
	*s3Kit
	client *s3.Client
	meter  *s3Meter
}

// measureRedelivery sends through the archive, whose keys follow from what the log holds and which
// writes on condition, and, to compare, with a key for each try.
func (k *s3Kit) measureRedelivery(ctx context.Context) error {
	l := newLedger(time.Now())
	batches, err := redeliveredBatches(l)
	if err != nil {
		return err
	}
	r := redelivery{s3Kit: k}
	if r.client, r.meter, err = k.newClient(ctx, withoutRetries); err != nil {
		return err
	}
	took, err := r.toArchive(ctx, batches)
	if errors.Is(err, sinks.ErrUnfit) {
		k.bench.missing(fmt.Sprintf("redelivery to the archive, for which this server is unfit: %v", err))
		return nil
	}
	if err != nil {
		return err
	}
	puts, gets := r.meter.puts.Load(), r.meter.gets.Load()
	reader, err := sinks.NewArchiveReader(k.client, k.settings.S3Bucket, k.archivePrefix(), s3RequestLimit)
	if err != nil {
		return err
	}
	if err := l.readArchive(ctx, reader); err != nil {
		return err
	}
	v := l.judge("s3", archiveSink)
	k.bench.report.Correctness = append(k.bench.report.Correctness, v)
	k.bench.config.Say("correctness: " + v.String())
	events := fmt.Sprintf("of %d events", redeliveries*redeliveredEvents)
	k.bench.figure(Shape, "answers lost, conditional append: doubles", float64(v.Doubled), events)
	k.bench.figure(Shape, "answers lost, conditional append: PUTs of a batch", float64(puts)/redeliveries, "requests")
	k.bench.figure(Shape, "answers lost, conditional append: GETs and LISTs of a batch", float64(gets)/redeliveries, "requests")
	k.bench.figure(Absolute, "answers lost, conditional append: a batch", float64(took)/float64(time.Millisecond)/redeliveries, "ms")
	doubled, err := r.byTry(ctx, l, batches)
	if err != nil {
		return err
	}
	k.bench.figure(Shape, "answers lost, a key for each try: doubles", float64(doubled), events)
	return nil
}

// redeliveredBatches are batches of accepted events.
func redeliveredBatches(l *ledger) ([]*pipeline.Batch, error) {
	calls, err := content{bytes: 256, perCall: redeliveredEvents, keys: 1}.deal(l.run)
	if err != nil {
		return nil, err
	}
	var out []*pipeline.Batch
	for n := range redeliveries {
		first := l.reserve(redeliveredEvents, time.Now())
		l.settleAll(first, redeliveredEvents, l.now())
		b := &pipeline.Batch{ID: pipeline.BatchID{Number: int64(n + 1), Token: uint64(n+1) << 32}, AcceptedAt: time.Now().UTC()}
		for i, e := range calls[n%len(calls)] {
			encoded := append([]byte(nil), e.encoded...)
			l.writeID(encoded[idAt:idAt+eventIDBytes], first+int64(i))
			b.Events = append(b.Events, encoded)
		}
		out = append(out, b)
	}
	return out, nil
}

func (k *s3Kit) archivePrefix() string { return k.prefix + "archive" }

// toArchive sends each batch until it is known to be stored; the first PUT of each is done
// and its answer lost.
func (r redelivery) toArchive(ctx context.Context, batches []*pipeline.Batch) (time.Duration, error) {
	c := sinks.DefaultArchiveConfig()
	c.Bucket, c.Prefix, c.Timeout, c.Log = r.settings.S3Bucket, r.archivePrefix(), s3RequestLimit, slog.New(slog.DiscardHandler)
	var archive *sinks.Archive
	var took time.Duration
	for n, b := range batches {
		if n%takeoverEvery == 0 {
			var err error
			if archive, err = sinks.NewArchive(r.client, c); err != nil {
				return 0, err
			}
			if n == 0 {
				if err := archive.Probe(ctx); err != nil {
					return 0, err
				}
			}
		}
		began := time.Now()
		if err := r.losingOne(func() error { return sendWhole(ctx, archive, b) }); err != nil {
			return 0, fmt.Errorf("batch %d: %w", n+1, err)
		}
		took += time.Since(began)
	}
	return took, nil
}

// losingOne calls send until it succeeds; the first answer to a PUT that was done is lost, and must
// be.
func (r redelivery) losingOne(send func() error) error {
	lost := false
	lose := func() bool {
		first := !lost
		lost = true
		return first
	}
	r.meter.lose.Store(&lose)
	defer r.meter.lose.Store(nil)
	err := send()
	for try := 1; err != nil && try < redeliveryTries; try++ {
		err = send()
	}
	if err == nil && !lost {
		return errors.New("no PUT was made, so that no answer could be lost")
	}
	return err
}

func sendWhole(ctx context.Context, archive *sinks.Archive, b *pipeline.Batch) error {
	var items []pipeline.Item
	for i := range b.Events {
		items = append(items, pipeline.Item{Batch: b, Index: i})
	}
	results, err := archive.Send(ctx, 0, items)
	if err != nil {
		return err
	}
	for _, r := range results {
		if r.Verdict != pipeline.Delivered {
			return fmt.Errorf("not delivered: %s %s", r.Code, r.Reason)
		}
	}
	return nil
}

// byTry writes each batch with another key at each try, as a writer does that names
// objects by time or by chance, and returns how many events are there more than once.
func (r redelivery) byTry(ctx context.Context, l *ledger, batches []*pipeline.Batch) (doubled int64, err error) {
	tries := 0
	for _, b := range batches {
		var ids []string
		for _, e := range b.Events {
			ids = append(ids, string(e[idAt:idAt+eventIDBytes]))
		}
		if err := r.losingOne(func() error {
			tries++
			return r.put(ctx, r.client, fmt.Sprintf("by-try/%020d", tries), []byte(strings.Join(ids, "\n")))
		}); err != nil {
			return 0, err
		}
	}
	keys, _, err := r.list(ctx, r.client, "by-try/", "")
	if err != nil {
		return 0, err
	}
	l.unmark(isArchived)
	for _, key := range keys {
		body, err := r.get(ctx, r.client, key)
		if err != nil {
			return 0, err
		}
		for id := range strings.SplitSeq(string(body), "\n") {
			if event, ours := l.parseID([]byte(id)); ours && l.mark(event, isArchived) {
				doubled++
			}
		}
	}
	return doubled, nil
}
