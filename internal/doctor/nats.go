package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/pipeline"
)

// oldestNATS is the first nats-server that can reset a consumer.
var oldestNATS = version{2, 14}

// broker is a patient that speaks JetStream.
type broker struct {
	patient
	cfg   Config
	nc    *nats.Conn
	js    jetstream.JetStream
	queue *pipeline.Queue
}

func examineNATS(ctx context.Context, cfg Config) []Finding {
	if cfg.NATS == nil {
		return nil
	}
	b := &broker{patient: patient{server: "nats"}, cfg: cfg}
	nc, err := cfg.NATS(ctx)
	if err != nil {
		b.fail("reachable", "start the server, or correct --nats-url and --nats-creds (WAYBILL_NATS_URL, WAYBILL_NATS_CREDS)", "%v", err)
		return b.findings
	}
	defer nc.Close()
	b.nc = nc
	if b.js, err = jetstream.New(nc, jetstream.WithDefaultTimeout(5*time.Second)); err == nil {
		b.queue, err = pipeline.NewQueue(nc)
	}
	if err != nil {
		b.fail("jetstream", "see whether WAYBILL_NATS_URL is a nats-server 2.14 or newer", "%v", err)
		return b.findings
	}
	b.server()
	if b.jetstream(ctx) {
		b.streams(ctx)
		b.consumers(ctx)
		b.processes(ctx)
	}
	return b.findings
}

func (b *broker) server() {
	text := b.nc.ConnectedServerVersion()
	b.ok("reachable", "%s, server %s", pipeline.ConnectedHost(b.nc), b.nc.ConnectedServerName())
	switch v, ok := parseVersion(text); {
	case !ok:
		b.warn("version", "see whether it is nats-server 2.14 or newer", "%q is no version", text)
	case v.before(oldestNATS):
		b.fail("version", "upgrade to nats-server 2.14 or newer: forwarders reset their consumers, which older ones cannot", "nats-server %s", text)
	default:
		b.ok("version", "nats-server %s", text)
	}
	need := int64(b.cfg.MaxEventBytes + pipeline.EventHeadroom)
	if have := b.nc.MaxPayload(); have < need {
		b.fail("max_payload", fmt.Sprintf("set max_payload to %d or more in the server's configuration (8 MiB suits the defaults), or lower WAYBILL_MAX_EVENT_BYTES", need),
			"%d bytes; events of up to %d need %d", have, b.cfg.MaxEventBytes, need)
	} else {
		b.ok("max_payload", "%d bytes", have)
	}
}

// jetstream reports whether it can be asked.
func (b *broker) jetstream(ctx context.Context) bool {
	account, err := b.js.AccountInfo(ctx)
	if err != nil {
		b.fail("jetstream", "enable JetStream in the server's configuration and for the account, and let the user publish to $JS.API.>", "%v", err)
		return false
	}
	if most := account.Limits.MaxStore; most > 0 {
		b.space("storage", "JetStream's storage of the account", "raise the account's max_store, or lower WAYBILL_QUEUE_BYTES", account.Store, uint64(most))
	} else {
		b.ok("storage", "%s used; the account has no limit, and how much room the server's disk has is not known here", bytesText(account.Store))
	}
	return true
}

func (b *broker) streams(ctx context.Context) {
	// Whatever the setting, the rest is judged by the number that there is.
	if lanes, _, err := b.queue.Lanes(ctx); err == nil && lanes != b.cfg.Lanes {
		b.fail("lanes", fmt.Sprintf("set --lanes=%d (WAYBILL_LANES=%d) here, and see that every process has it", lanes, lanes),
			"the stream %s was made for %d lanes, and the setting is %d", pipeline.EventsStream, lanes, b.cfg.Lanes)
		b.cfg.Lanes = lanes
	}
	// The same check that every process makes at start.
	switch err := b.queue.Check(ctx, b.cfg.Lanes, 0); {
	case err == nil:
		b.ok("streams", "streams and buckets are there and fit %d lanes", b.cfg.Lanes)
	case errors.Is(err, pipeline.ErrNotReady):
		b.fail("streams", "run `waybill migrate`, or start a janitor, which creates what is missing", "%v", err)
	default:
		b.fail("streams", "do what stands at its end: processes refuse to start on such a stream", "%v", err)
	}
	for _, s := range []struct {
		name, full string
	}{
		{pipeline.EventsStream, "raise WAYBILL_QUEUE_BYTES of the janitors, or bring the sink back that lags: near its limit the oldest batches are shed and retransmitted later"},
		{pipeline.ReceiptsStream, "start a janitor, or more of them: receipts are not settled, and a full stream stops deliveries"},
	} {
		before := time.Now()
		stream, err := b.js.Stream(ctx, s.name)
		if err != nil {
			continue // the check has said so
		}
		info := stream.CachedInfo()
		if s.name == pipeline.EventsStream {
			b.clock(info.TimeStamp, before, time.Now(), 0, b.cfg.ExpiryMargin)
		}
		b.stream(info)
		b.space(s.name, "the stream "+s.name, s.full, info.State.Bytes, uint64(max(info.Config.MaxBytes, 0)))
	}
}

// stream judges settings that the check of a process leaves to the operator.
func (b *broker) stream(info *jetstream.StreamInfo) {
	c := info.Config
	clustered := b.nc.ConnectedClusterName() != ""
	check := c.Name + " settings"
	switch {
	case c.Storage != jetstream.FileStorage:
		b.fail(check, "delete the stream while no ingest runs; a janitor makes it anew, and Postgres has what it held", "it is kept in memory: a restart of the server loses the queue")
	case c.Discard != jetstream.DiscardNew:
		b.fail(check, "start a janitor, which corrects it", "when it is full it discards what is old, un-acked messages too")
	case c.MaxBytes <= 0:
		b.warn(check, "start a janitor, which sets WAYBILL_QUEUE_BYTES", "it may fill the server's disk")
	case clustered && c.Replicas < 3:
		b.warn(check, "set WAYBILL_QUEUE_REPLICAS=3 for janitors and migrate", "the server is one of a cluster, and the stream has %d replica: with that server down nothing is delivered", c.Replicas)
	default:
		b.ok(check, "in files, %d replica, at most %s", c.Replicas, bytesText(uint64(c.MaxBytes)))
	}
}

// consumers looks for the work queue of each sink in each lane. Which sinks there are the queues say.
func (b *broker) consumers(ctx context.Context) {
	queued, err := pipeline.QueuedFor(ctx, b.queue)
	if err != nil {
		return // the streams are not there
	}
	lanes := map[string]int{}
	for place := range queued {
		lanes[place.Sink]++
	}
	var short []string
	for sink, n := range lanes {
		if n != b.cfg.Lanes {
			short = append(short, fmt.Sprintf("%s has %d of %d", sink, n, b.cfg.Lanes))
		}
	}
	slices.Sort(short)
	switch {
	case len(lanes) == 0:
		b.fail("consumers", "run `waybill migrate`, or start a janitor, which creates them", "no sink has a queue")
	case len(short) > 0:
		b.fail("consumers", "start a janitor, which creates what is missing", "%s", strings.Join(short, ", "))
	default:
		b.ok("consumers", "one per lane for each of %d sinks", len(lanes))
	}
	pauses, err := pipeline.PausesOf(ctx, b.queue, nil)
	if err != nil {
		b.warn("pauses", "let the user read the bucket of pauses, or run `waybill migrate`, which makes it", "%v", err)
	}
	for sink := range pauses {
		b.warn("pauses", "`waybill lanes resume --sink "+sink+"` when the reason is gone; `waybill lanes` shows them", "lanes of %s are paused", sink)
	}
}

// processes looks at who is alive, and at what they complain of.
func (b *broker) processes(ctx context.Context) {
	p := &patient{server: "processes"}
	emitting := false
	for _, kind := range []string{pipeline.KindEmitter, pipeline.KindIngest, pipeline.KindForwarder, pipeline.KindJanitor} {
		live, err := pipeline.LiveProcesses(ctx, b.queue, kind)
		if err != nil {
			return // the buckets are not there, which was said
		}
		if len(live) == 0 {
			// An emitter is a way in too: with one, no ingest need be there, and the other way round.
			if kind != pipeline.KindEmitter && !(kind == pipeline.KindIngest && emitting) {
				p.warn(kind, "start one", "none is alive")
			}
			continue
		}
		emitting = emitting || kind == pipeline.KindEmitter
		troubled := 0
		for _, h := range live {
			if h.Problem != "" {
				troubled++
				p.warn(kind, "GET /readyz of its admin address says more", "%s on %s: %s", h.ID, h.Host, h.Problem)
			}
		}
		if troubled == 0 {
			p.ok(kind, "%d alive, and none complains", len(live))
		}
	}
	b.findings = append(b.findings, p.findings...)
}
