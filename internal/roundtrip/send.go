package roundtrip

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"golang.org/x/sync/errgroup"

	"github.com/waybillhq/waybill/internal/cloudevent"
	"github.com/waybillhq/waybill/internal/producer"
	"github.com/waybillhq/waybill/pipeline"
)

// SenderConfig says how a plan is sent. Start from DefaultSenderConfig.
type SenderConfig struct {
	// HTTP (URLs) and GRPC (host:port) are the ingests': HTTP[i] and GRPC[i] belong to
	// one. All events of a key go to one ingest, because order holds per ingest.
	HTTP, GRPC []string
	// Emitters are ways in beside the ingests, and share the keys with them. The caller runs
	// them.
	Emitters []*pipeline.Emitter
	// Callers is how many calls are in flight per ingest.
	Callers int
	// Rate is how many events are offered a second, to all ingests together; 0: as many
	// as they take.
	Rate float64
	// Stop, which may be nil, ends the sending before the plan's last event when it is
	// closed: no further call is begun, and those under way come to their end.
	Stop <-chan struct{}
	// Patience is how long an event is sent again.
	Patience time.Duration
	// Told, which may be nil, hears of tries that have to be repeated. Concurrently.
	Told func(left int, err error)
	// Progress, which may be nil, counts the accepted events while Send runs.
	Progress *atomic.Int64
}

// DefaultSenderConfig is 16 callers with two minutes of patience.
func DefaultSenderConfig(http, grpc []string) SenderConfig {
	return SenderConfig{HTTP: http, GRPC: grpc, Callers: 16, Patience: 2 * time.Minute}
}

// Validate names the first setting that cannot work.
func (c SenderConfig) Validate() error {
	switch {
	case len(c.HTTP) == 0 || len(c.HTTP) != len(c.GRPC):
		return fmt.Errorf("ingests: %d HTTP and %d gRPC addresses; want one of each per ingest", len(c.HTTP), len(c.GRPC))
	case c.Callers < 1:
		return fmt.Errorf("callers: %d; want at least 1", c.Callers)
	case c.Rate < 0:
		return fmt.Errorf("rate: %g; want events per second, or 0 for no limit", c.Rate)
	case c.Patience <= 0:
		return errors.New("patience: want a positive duration")
	}
	return nil
}

// way is one of the ways into an ingest.
type way int

const (
	httpBinary way = iota
	httpStructured
	grpcPublish
	httpBatch
	grpcBatch
	grpcStream
	ways
)

// callEvents is how many events one call takes: single events cost far more each.
func (w way) callEvents(r *rand.Rand) int {
	if w < httpBatch {
		return 1
	}
	return 20 + r.IntN(100)
}

// Send sends the events of a plan over all ways in and returns what became of them. The
// error is one of the configuration or of ctx; events that are not accepted are in the
// ledger.
func Send(ctx context.Context, config SenderConfig, plan Plan) (*Ledger, error) {
	if err := errors.Join(config.Validate(), plan.Validate()); err != nil {
		return nil, err
	}
	ingests, err := dialAll(config)
	if err != nil {
		return nil, err
	}
	ledger := newLedger(plan)
	group, ctx := errgroup.WithContext(ctx)
	queues := make([]chan call, len(ingests))
	for i, in := range ingests {
		queues[i] = make(chan call)
		group.Go(func() error {
			defer in.close()
			return work(ctx, config, ledger, in.senders, queues[i])
		})
	}
	for i, queue := range queues {
		group.Go(func() error {
			defer close(queue)
			return newDealer(config, plan, i).deal(ctx, queue)
		})
	}
	return ledger, group.Wait()
}

// call is what one call sends.
type call struct {
	way     way
	indexes []int
}

// chooseWay makes a single event of three calls in four, which is about one event in
// thirty.
func chooseWay(r *rand.Rand) way {
	if r.IntN(4) > 0 {
		return way(r.IntN(int(httpBatch)))
	}
	return httpBatch + way(r.IntN(int(ways-httpBatch)))
}

// route is the ingest, or beyond those the emitter, of an event's key.
func route(plan Plan, index, ingests int) int {
	source, typ := plan.keyOf(index)
	return routeOf(source, typ, ingests)
}

func routeOf(source, typ string, ingests int) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(source + " " + typ)) // a hash takes everything
	return int(h.Sum32() % uint32(ingests))
}

// ByEmitter reports whether the events of a key are sent to one of the emitters.
func (c SenderConfig) ByEmitter(source, typ string) bool {
	return routeOf(source, typ, len(c.HTTP)+len(c.Emitters)) >= len(c.HTTP)
}

// ingest is one ingest's senders, one for each way in.
type ingest struct {
	senders [ways]producer.Sender
	close   func()
}

// dialAll connects nothing yet; it fails for what is no address.
func dialAll(config SenderConfig) ([]ingest, error) {
	var all []ingest
	for i := range config.HTTP {
		in, err := dial(config.HTTP[i], config.GRPC[i])
		if err != nil {
			for _, in := range all {
				in.close()
			}
			return nil, err
		}
		all = append(all, in)
	}
	for _, emitter := range config.Emitters {
		all = append(all, emitting(emitter))
	}
	return all, nil
}

// emitting is an emitter in place of an ingest: whatever a call is to go over, it is emitted.
func emitting(emitter *pipeline.Emitter) ingest {
	in := ingest{close: func() {}}
	sender := producer.NewEmitter(emitter)
	for w := range in.senders {
		in.senders[w] = sender
	}
	return in
}

func dial(httpURL, grpcAddr string) (ingest, error) {
	binary, err := producer.NewHTTP(httpURL, true)
	if err != nil {
		return ingest{}, err
	}
	structured, err := producer.NewHTTP(httpURL, false)
	if err != nil {
		return ingest{}, err
	}
	unary, err := producer.NewGRPC(grpcAddr, false, false)
	if err != nil {
		return ingest{}, err
	}
	stream, err := producer.NewGRPC(grpcAddr, false, true)
	if err != nil {
		return ingest{}, errors.Join(err, unary.Close())
	}
	return ingest{
		senders: [ways]producer.Sender{
			httpBinary: binary, httpStructured: structured, httpBatch: structured,
			grpcPublish: unary, grpcBatch: unary, grpcStream: stream,
		},
		close: func() {
			binary.Close()
			structured.Close()
			_, _ = unary.Close(), stream.Close() // every answer has been read
		},
	}, nil
}

// work sends the calls of a queue, several at once.
func work(ctx context.Context, config SenderConfig, ledger *Ledger, senders [ways]producer.Sender, queue <-chan call) error {
	var wg sync.WaitGroup
	for range config.Callers {
		wg.Go(func() {
			for c := range queue {
				ledger.send(ctx, config, senders[c.way], c)
			}
		})
	}
	wg.Wait()
	return ctx.Err()
}

// send sends one call and keeps what became of it. Each index is in one call only.
func (l *Ledger) send(ctx context.Context, config SenderConfig, sender producer.Sender, c call) {
	events := make([]*pb.CloudEvent, len(c.indexes))
	for i, index := range c.indexes {
		events[i] = l.plan.Event(index)
		l.sent[index].checksum, l.sent[index].offered = checksum(cloudevent.Data(events[i])), true
	}
	accepted := int64(0)
	for i, outcome := range producer.SendUntil(ctx, sender, events, config.Patience, config.Told) {
		e := &l.sent[c.indexes[i]]
		e.accepted, e.unknown, e.err = outcome.Err == nil, outcome.Unknown, outcome.Err
		if e.accepted {
			accepted++
		}
	}
	if config.Progress != nil {
		config.Progress.Add(accepted)
	}
}
