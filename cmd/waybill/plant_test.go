package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/metric/noop"
	"google.golang.org/protobuf/proto"

	"github.com/waybillhq/waybill/internal/devstack"
	"github.com/waybillhq/waybill/internal/pgtest"
	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/sinks"
)

// testLeaseTTL is so long that a loaded machine does not make a forwarder lose a lane.
const testLeaseTTL = 4 * time.Second

// plant is the servers of a pipeline and what runs on them in this process: parts are started
// and stopped one by one, which a `waybill dev` does not let one do.
type plant struct {
	url     string // of the database
	nats    *devstack.NATS
	s3      *devstack.S3
	archive sinks.ArchiveConfig
	ingress *recorder

	parts map[string]func() // that run, and how to stop them
}

func mustPlant(t *testing.T) *plant {
	t.Helper()
	p := &plant{url: pgtest.New(t), parts: map[string]func(){}, ingress: &recorder{seen: map[string]int{}}}
	var err error
	if p.nats, err = devstack.StartNATS(devstack.DefaultNATSOptions(t.TempDir())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.nats.Stop)
	if p.s3, err = devstack.StartS3(t.Context(), devstack.S3Options{Dir: t.TempDir(), Log: os.Stderr}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.s3.Stop(); err != nil {
			t.Error(err)
		}
	})
	p.archive = sinks.DefaultArchiveConfig()
	p.archive.Bucket, p.archive.Log, p.archive.Linger = "archive", slog.New(slog.DiscardHandler), 50*time.Millisecond
	if err := p.s3.CreateBucket(t.Context(), p.archive.Bucket); err != nil {
		t.Fatal(err)
	}
	if r := p.migrate(t, testSpec.Lanes); r.failure != nil {
		t.Fatal(r.failure)
	}
	t.Cleanup(func() { p.stop(t, "ingest", "forwarder", "janitor") })
	return p
}

// migrate runs `waybill migrate`.
func (p *plant) migrate(t *testing.T, lanes int, args ...string) result {
	t.Helper()
	return command(t, nil, append([]string{
		"migrate", "--database-url", p.url, "--nats-url", p.nats.URL(),
		fmt.Sprintf("--lanes=%d", lanes), "--grace=" + testGrace.String(), "--lease-ttl=" + testLeaseTTL.String(), "--queue-bytes=268435456",
	}, args...)...)
}

func (p *plant) queue(t *testing.T) *pipeline.Queue {
	t.Helper()
	return mustQueue(t, mustConnect(t, p))
}

func mustConnect(t *testing.T, p *plant) *nats.Conn {
	t.Helper()
	nc, err := pipeline.ConnectNATS(p.nats.URL(), t.Name())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func mustQueue(t *testing.T, nc *nats.Conn) *pipeline.Queue {
	t.Helper()
	q, err := pipeline.NewQueue(nc)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func (p *plant) store(t *testing.T, lanes int) *pipeline.Store {
	t.Helper()
	s, err := openStore(t.Context(), p.url, lanes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// run starts a part with a heartbeat, as its process would.
func (p *plant) run(t *testing.T, kind string, q *pipeline.Queue, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	failed := func(err error) {
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", kind, err)
		}
	}
	wg.Go(func() { failed(run(ctx)) })
	if kind != pipeline.KindForwarder { // it has its own
		wg.Go(func() {
			failed(pipeline.RunHeartbeat(ctx, q, slog.New(slog.DiscardHandler), func() pipeline.Heartbeat {
				return pipeline.NewHeartbeat(kind, "it", "test")
			}))
		})
	}
	p.parts[kind] = func() { cancel(); wg.Wait() }
}

func (p *plant) stop(t *testing.T, kinds ...string) {
	t.Helper()
	for _, kind := range kinds {
		if stop := p.parts[kind]; stop != nil {
			stop()
			delete(p.parts, kind)
		}
	}
}

var testMeter = noop.NewMeterProvider().Meter("test")

func (p *plant) startIngest(t *testing.T, lanes int, ttl time.Duration) *pipeline.Ingester {
	t.Helper()
	q := p.queue(t)
	config := pipeline.DefaultIngesterConfig()
	config.EventTTL = ttl
	in, err := pipeline.NewIngester(config, p.store(t, lanes), q, slog.New(slog.DiscardHandler), testMeter)
	if err != nil {
		t.Fatal(err)
	}
	p.run(t, pipeline.KindIngest, q, in.Run)
	return in
}

func (p *plant) startJanitor(t *testing.T, lanes int) {
	t.Helper()
	q := p.queue(t)
	config := pipeline.DefaultJanitorConfig()
	config.Queue.LeaseTTL, config.Queue.MaxBytes = testLeaseTTL, 256<<20
	config.UpkeepEvery, config.RetransmitEvery, config.ExpireEvery = 100*time.Millisecond, 100*time.Millisecond, 100*time.Millisecond
	j, err := pipeline.NewJanitor(config, p.store(t, lanes), q, slog.New(slog.DiscardHandler), testMeter)
	if err != nil {
		t.Fatal(err)
	}
	p.run(t, pipeline.KindJanitor, q, j.Run)
}

func (p *plant) startForwarder(t *testing.T, lanes int) {
	t.Helper()
	q := p.queue(t)
	archive := p.archive
	archive.Cursors = pipeline.NewCursors(q, archive.Name)
	client, err := sinks.NewS3Client(t.Context(), p.s3Config())
	if err != nil {
		t.Fatal(err)
	}
	sink, err := sinks.NewArchive(client, archive)
	if err != nil {
		t.Fatal(err)
	}
	config := pipeline.DefaultForwarderConfig()
	config.ID, config.Lanes, config.Sinks, config.RebalanceEvery = "it", lanes, []pipeline.Sink{p.ingress, sink}, 100*time.Millisecond
	f, err := pipeline.NewForwarder(config, q, slog.New(slog.DiscardHandler), testMeter)
	if err != nil {
		t.Fatal(err)
	}
	p.run(t, pipeline.KindForwarder, q, f.Run)
}

func (p *plant) s3Config() sinks.S3Config {
	c := sinks.DefaultS3Config()
	c.Endpoint, c.PathStyle, c.AccessKey, c.SecretKey = p.s3.Endpoint, true, p.s3.AccessKey, p.s3.SecretKey
	return c
}

// archived reads the whole archive, by lane, and fails on a gap in the offsets.
func (p *plant) archived(t *testing.T) map[int][]sinks.Record {
	t.Helper()
	client, err := sinks.NewS3Client(t.Context(), p.s3Config())
	if err != nil {
		t.Fatal(err)
	}
	reader, err := sinks.NewArchiveReader(client, p.archive.Bucket, p.archive.Prefix, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	lanes, err := reader.Lanes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := map[int][]sinks.Record{}
	for _, lane := range lanes {
		for record, err := range reader.Records(t.Context(), lane, 0) {
			if err != nil {
				t.Fatal(err)
			}
			if record.Offset != int64(len(out[lane])) {
				t.Fatalf("lane %d has offset %d after %d events", lane, record.Offset, len(out[lane]))
			}
			out[lane] = append(out[lane], record)
		}
	}
	return out
}

// recorder is the sink "ingress": it takes everything, unless it is told to refuse it, and counts it by id.
type recorder struct {
	mu      sync.Mutex
	seen    map[string]int
	refuses bool
}

func (r *recorder) Name() string                { return "ingress" }
func (r *recorder) Limits() pipeline.Limits     { return pipeline.Limits{Events: 100, Bytes: 1 << 20} }
func (r *recorder) Probe(context.Context) error { return nil }

func (r *recorder) Send(_ context.Context, _ int, items []pipeline.Item) ([]pipeline.Result, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	results := make([]pipeline.Result, len(items))
	for i, item := range items {
		ce := new(pb.CloudEvent)
		if err := proto.Unmarshal(item.Encoded(), ce); err != nil {
			return nil, err
		}
		if r.refuses {
			results[i] = pipeline.Result{Verdict: pipeline.Refused, Code: "NOT_NOW", Reason: "the test wants it"}
			continue
		}
		r.seen[ce.Id]++
		results[i].Verdict = pipeline.Delivered
	}
	return results, nil
}

func (r *recorder) refuse(refuses bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refuses = refuses
}

func (r *recorder) times(id string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seen[id]
}

// total is how many events it got, each counted once.
func (r *recorder) total() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.seen)
}

func eventually(t *testing.T, within time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", within, what)
		}
	}
}
