package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/pipeline/failpoint"
)

// Names on the NATS side.
const (
	// EventsStream queues batches and keeps them for replay.
	EventsStream = "EVENTS"
	// ReceiptsStream carries the forwarders' receipts to the janitors.
	ReceiptsStream = "RECEIPTS"

	eventSubjects    = "events.*"
	receiptsSubject  = "receipts"
	receiptsConsumer = "janitor"
	lanesMetadata    = "waybill-lanes"
	// sinkMetadata marks the consumers that are sinks' work queues.
	sinkMetadata = "waybill-sink"

	// againMetadata marks a leases' bucket that stands in for one that was lost.
	againMetadata = "waybill-again"

	leasesBucket     = "waybill_leases"
	heartbeatsBucket = "waybill_heartbeats"
	cursorsBucket    = "waybill_cursors"
	// pausesBucket is not waited for: without it nothing is paused.
	pausesBucket = "waybill_pauses"
)

func eventSubject(lane int) string { return "events." + strconv.Itoa(lane) }

// consumerName is the durable consumer that is a sink's work queue for one lane.
func consumerName(sink string, lane int) string { return sink + "-" + strconv.Itoa(lane) }

// QueueConfig says how the streams are made.
type QueueConfig struct {
	// Replicas of the streams and buckets: 1, or 3 on a cluster.
	Replicas int
	// MaxBytes bounds EVENTS on disk. Beyond ShedAbove of it the oldest batches are shed.
	MaxBytes int64
	// MaxReceiptBytes bounds RECEIPTS.
	MaxReceiptBytes int64
	// LeaseTTL is how long a lane stays with a forwarder that no longer answers, and how
	// long a process counts as alive after its last heartbeat.
	LeaseTTL time.Duration
	// MaxAckPending is how many batches of one (sink, lane) may be delivered and not acked:
	// more than a request or an object may hold, and no more than a worker remembers.
	MaxAckPending int
	// AckWait is a backstop: a worker acks, or resets its consumer.
	AckWait time.Duration
}

// DefaultQueueConfig returns one replica and 8 GiB of queue.
func DefaultQueueConfig() QueueConfig {
	return QueueConfig{
		Replicas: 1, MaxBytes: 8 << 30, MaxReceiptBytes: 1 << 30,
		LeaseTTL: 6 * time.Second, MaxAckPending: 16_000, AckWait: 10 * time.Minute,
	}
}

// Validate names the first setting that cannot work.
func (c QueueConfig) Validate() error {
	switch {
	case c.Replicas < 1 || c.Replicas > 5:
		return fmt.Errorf("queue replicas: %d; want 1 to 5", c.Replicas)
	case c.MaxBytes < 64<<20:
		return fmt.Errorf("queue bytes: %d; want at least 64 MiB", c.MaxBytes)
	case c.MaxReceiptBytes < 1<<20:
		return fmt.Errorf("receipt bytes: %d; want at least 1 MiB", c.MaxReceiptBytes)
	case c.LeaseTTL < time.Second:
		return fmt.Errorf("lease TTL: %v; want at least 1s", c.LeaseTTL)
	case c.MaxAckPending < 100 || c.MaxAckPending > deliveredMax:
		return fmt.Errorf("max ack pending: %d; want 100 to %d", c.MaxAckPending, deliveredMax)
	case c.AckWait < time.Minute:
		return fmt.Errorf("ack wait: %v; want at least 1m, since it is a backstop only", c.AckWait)
	}
	return nil
}

// Queue is Waybill's part of a NATS account. It is safe for concurrent use.
type Queue struct {
	js jetstream.JetStream
}

// NewQueue makes a Queue of a connection.
func NewQueue(nc *nats.Conn) (*Queue, error) {
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(5*time.Second))
	if err != nil {
		return nil, fmt.Errorf("jetstream: %w", err)
	}
	return &Queue{js: js}, nil
}

// ConnectNATS connects for as long as the process lives: it reconnects for ever, and a
// message published while disconnected fails at once instead of waiting in a buffer, since
// one that arrives late is a duplicate.
func ConnectNATS(address, name string, opts ...nats.Option) (*nats.Conn, error) {
	opts = append([]nats.Option{
		nats.Name(name), nats.MaxReconnects(-1), nats.ReconnectWait(250 * time.Millisecond),
		nats.ReconnectJitter(250*time.Millisecond, 250*time.Millisecond),
		nats.ReconnectBufSize(-1), nats.RetryOnFailedConnect(true),
		nats.PingInterval(5 * time.Second), nats.MaxPingsOutstanding(2),
		nats.CustomInboxPrefix("_INBOX_waybill"),
	}, opts...)
	nc, err := nats.Connect(address, opts...)
	if malformed := (*url.Error)(nil); errors.As(err, &malformed) {
		// Its text has the URL, and with it a password, in it.
		return nil, errors.New("connect to NATS: a server's URL cannot be parsed: want nats://user:password@host:port, with %XX for what is no letter or digit in a user or a password")
	}
	if err != nil {
		return nil, fmt.Errorf("connect to NATS: %w", err)
	}
	return nc, nil
}

// ConnectedHost is host and port of the server that a connection has. A URL of NATS may have a token in
// place of the user, which nats.Conn.ConnectedUrlRedacted shows.
func ConnectedHost(nc *nats.Conn) string {
	u, err := url.Parse(nc.ConnectedUrl())
	if err != nil {
		return nc.ConnectedAddr()
	}
	return u.Host
}

// ConnectionLog returns options by which a connection's ups and downs are logged.
func ConnectionLog(log *slog.Logger) []nats.Option {
	return []nats.Option{
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Warn("disconnected from NATS", "error", err)
			}
		}),
		nats.ReconnectHandler(func(c *nats.Conn) { log.Info("connected to NATS again", "server", ConnectedHost(c)) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { log.Warn("NATS error", "error", err) }),
	}
}

// ensureStreams creates what is missing of the streams and buckets and brings what exists
// to cfg where that is possible. It never deletes anything. lanes is kept in the stream's
// metadata; a stream with another number is an error.
func (q *Queue) ensureStreams(ctx context.Context, cfg QueueConfig, lanes int) error {
	return q.ensureAll(ctx, cfg, lanes, false)
}

// ensureAll is ensureStreams. again says that a running pipeline is looked after: what is
// missing was there before.
func (q *Queue) ensureAll(ctx context.Context, cfg QueueConfig, lanes int, again bool) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	for _, sc := range []jetstream.StreamConfig{eventsConfig(cfg, lanes), receiptsConfig(cfg)} {
		if err := q.ensureStream(ctx, sc); err != nil {
			return err
		}
	}
	if err := q.ensureConsumer(ctx, ReceiptsStream, receiptsConsumerConfig(cfg)); err != nil {
		return err
	}
	for _, bucket := range bucketConfigs(cfg) {
		if again && bucket.Bucket == leasesBucket {
			bucket.Metadata = map[string]string{againMetadata: "true"}
		}
		if err := q.ensureBucket(ctx, bucket); err != nil {
			return err
		}
	}
	return nil
}

func eventsConfig(cfg QueueConfig, lanes int) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: EventsStream, Subjects: []string{eventSubjects},
		Description: "Waybill's queue and replay log: one message is one batch",
		Retention:   jetstream.LimitsPolicy, Discard: jetstream.DiscardNew,
		Storage: jetstream.FileStorage, Replicas: cfg.Replicas,
		MaxBytes: cfg.MaxBytes, MaxMsgs: -1, Duplicates: 2 * time.Minute,
		Metadata: map[string]string{lanesMetadata: strconv.Itoa(lanes)},
	}
}

func receiptsConfig(cfg QueueConfig) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: ReceiptsStream, Subjects: []string{receiptsSubject},
		Description: "What the sinks took, on its way to Postgres",
		Retention:   jetstream.WorkQueuePolicy, Discard: jetstream.DiscardNew,
		Storage: jetstream.FileStorage, Replicas: cfg.Replicas,
		MaxBytes: cfg.MaxReceiptBytes, MaxMsgs: -1, Duplicates: 2 * time.Minute,
	}
}

func receiptsConsumerConfig(cfg QueueConfig) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable: receiptsConsumer, AckPolicy: jetstream.AckExplicitPolicy,
		// How long receipts wait that a janitor took with it when it died: retransmits wait
		// for them. One that is settled twice changes nothing.
		AckWait: 10 * time.Second, MaxDeliver: -1, MaxAckPending: 10 * cfg.MaxAckPending,
		DeliverPolicy: jetstream.DeliverAllPolicy,
	}
}

func bucketConfigs(cfg QueueConfig) []jetstream.KeyValueConfig {
	return []jetstream.KeyValueConfig{
		{Bucket: leasesBucket, TTL: cfg.LeaseTTL, Storage: jetstream.FileStorage, Replicas: cfg.Replicas},
		{Bucket: heartbeatsBucket, TTL: cfg.LeaseTTL, Storage: jetstream.FileStorage, Replicas: cfg.Replicas},
		{Bucket: cursorsBucket, Storage: jetstream.FileStorage, Replicas: cfg.Replicas},
		{Bucket: pausesBucket, Storage: jetstream.FileStorage, Replicas: cfg.Replicas},
	}
}

// LiveBuckets are the names of the buckets that the live path uses.
func LiveBuckets() []string { return []string{leasesBucket, heartbeatsBucket, cursorsBucket} }

// ChangesByItself reports that the values of a live bucket change while no event comes in.
func ChangesByItself(bucket string) bool { return bucket == leasesBucket || bucket == heartbeatsBucket }

func (q *Queue) ensureStream(ctx context.Context, want jetstream.StreamConfig) error {
	have, err := q.js.Stream(ctx, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		failpoint.Hit("janitor/before-create-stream")
		_, err = q.js.CreateStream(ctx, want)
		err = failpoint.Err("janitor/after-create-stream", err)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			return q.ensureStream(ctx, want) // another one created it meanwhile
		}
		if err != nil {
			return fmt.Errorf("create stream %s: %w", want.Name, err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", want.Name, err)
	}
	got := have.CachedInfo().Config
	if err := streamFits(got, want); err != nil {
		return err
	}
	if got.MaxBytes == want.MaxBytes && got.Replicas == want.Replicas && got.Discard == want.Discard {
		return nil
	}
	if _, err := q.js.UpdateStream(ctx, want); err != nil {
		return fmt.Errorf("update stream %s: %w", want.Name, err)
	}
	return nil
}

// streamFits reports what no update can mend.
func streamFits(got, want jetstream.StreamConfig) error {
	if got.Retention != want.Retention {
		return fmt.Errorf("stream %s has %v retention and Waybill needs %v, which cannot be changed: use another NATS account, or delete the stream", want.Name, got.Retention, want.Retention)
	}
	if got.MaxAge != 0 {
		return fmt.Errorf("stream %s deletes messages by age (%v), un-acked ones too: set its max age to 0", want.Name, got.MaxAge)
	}
	if from, to, changing := strings.Cut(got.Metadata[lanesMetadata], ">"); changing && want.Metadata[lanesMetadata] != "" {
		return fmt.Errorf("stream %s: a change from %s to %s lanes was begun and not finished; run `waybill migrate --change-lanes --lanes=%s` again", want.Name, from, to, to)
	}
	if lanes := want.Metadata[lanesMetadata]; lanes != "" && got.Metadata[lanesMetadata] != lanes {
		return fmt.Errorf("stream %s was made for %q lanes and this process is configured for %s; set WAYBILL_LANES to the pipeline's number", want.Name, got.Metadata[lanesMetadata], lanes)
	}
	return nil
}

func (q *Queue) ensureConsumer(ctx context.Context, stream string, want jetstream.ConsumerConfig) error {
	_, err := q.js.CreateConsumer(ctx, stream, want)
	if errors.Is(err, jetstream.ErrConsumerExists) {
		_, err = q.js.UpdateConsumer(ctx, stream, want)
	}
	if err != nil {
		return fmt.Errorf("create consumer %s of %s: %w", want.Durable, stream, err)
	}
	return nil
}

func (q *Queue) ensureBucket(ctx context.Context, want jetstream.KeyValueConfig) error {
	_, err := q.js.KeyValue(ctx, want.Bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		_, err = q.js.CreateKeyValue(ctx, want)
		if errors.Is(err, jetstream.ErrBucketExists) {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("create bucket %s: %w", want.Bucket, err)
	}
	return nil
}

// sinkConsumerConfig is a sink's work queue for a lane. start 0 is the beginning of the
// stream.
func sinkConsumerConfig(cfg QueueConfig, sink string, lane int, start uint64) jetstream.ConsumerConfig {
	c := jetstream.ConsumerConfig{
		Durable: consumerName(sink, lane), FilterSubject: eventSubject(lane),
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: cfg.AckWait, MaxDeliver: -1,
		MaxAckPending: cfg.MaxAckPending, DeliverPolicy: jetstream.DeliverAllPolicy,
		Metadata: map[string]string{sinkMetadata: sink},
	}
	if start > 0 {
		c.DeliverPolicy, c.OptStartSeq = jetstream.DeliverByStartSequencePolicy, start
	}
	return c
}

// Check reports, for a process that may not create anything, whether EVENTS and the
// buckets exist and fit: lanes as configured, and room for events of maxEventBytes
// (0: do not check). ErrNotReady means that something is missing and may yet appear.
func (q *Queue) Check(ctx context.Context, lanes, maxEventBytes int) error {
	if maxPayload := q.js.Conn().MaxPayload(); maxEventBytes > 0 && maxPayload > 0 && maxPayload < int64(maxEventBytes+EventHeadroom) {
		return fmt.Errorf("the NATS server's max_payload is %d bytes; events of up to %d need at least %d: raise max_payload in the server's configuration, or lower WAYBILL_MAX_EVENT_BYTES (of an emitter: MaxEventBytes)",
			maxPayload, maxEventBytes, maxEventBytes+EventHeadroom)
	}
	for _, want := range []jetstream.StreamConfig{eventsConfig(DefaultQueueConfig(), lanes), receiptsConfig(DefaultQueueConfig())} {
		s, err := q.js.Stream(ctx, want.Name)
		if err != nil {
			return notReady(err, "stream "+want.Name)
		}
		if err := streamFits(s.CachedInfo().Config, want); err != nil {
			return err
		}
	}
	for _, b := range bucketConfigs(DefaultQueueConfig()) {
		if b.Bucket == pausesBucket {
			continue
		}
		if _, err := q.js.KeyValue(ctx, b.Bucket); err != nil {
			return notReady(err, "bucket "+b.Bucket)
		}
	}
	return nil
}

// Lanes is how many lanes the pipeline has whose queue this is, as EVENTS says, and of which former ones beyond these
// EVENTS still holds something, from before their number was changed. The error is ErrNotReady where there is no such
// stream.
func (q *Queue) Lanes(ctx context.Context) (lanes int, former []int, err error) {
	s, err := q.js.Stream(ctx, EventsStream)
	if err != nil {
		return 0, nil, notReady(err, "stream "+EventsStream)
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(eventSubjects))
	if err != nil {
		return 0, nil, notReady(err, "stream "+EventsStream)
	}
	text := info.Config.Metadata[lanesMetadata]
	if _, to, changing := strings.Cut(text, ">"); changing {
		text = to
	}
	if lanes, err = strconv.Atoi(text); err != nil {
		return 0, nil, fmt.Errorf("stream %s does not say for how many lanes it was made: %s in its metadata is %q", EventsStream, lanesMetadata, text)
	}
	for subject := range info.State.Subjects {
		if lane, ok := laneOfSubject(subject); ok && lane >= lanes {
			former = append(former, lane)
		}
	}
	slices.Sort(former)
	return lanes, former, nil
}

// ErrNotReady means that a part of the queue does not exist, or cannot be reached, yet.
var ErrNotReady = errors.New("the queue is not ready")

func notReady(err error, what string) error {
	if errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, jetstream.ErrBucketNotFound) || errors.Is(err, jetstream.ErrConsumerNotFound) {
		return fmt.Errorf("%w: %s does not exist: run `waybill migrate`, or start a janitor, which creates what is missing", ErrNotReady, what)
	}
	if errors.Is(err, nats.ErrReconnectBufExceeded) { // none is kept; see ConnectNATS
		return fmt.Errorf("%w: %s: NATS is not connected", ErrNotReady, what)
	}
	return fmt.Errorf("%w: %s: %w", ErrNotReady, what, err)
}

// MaxBatchBytes is the largest message body that the server takes.
func (q *Queue) MaxBatchBytes() int { return int(q.js.Conn().MaxPayload()) - maxHeaderBytes }
