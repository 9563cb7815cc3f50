package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
)

// S3Prices are what requests and storage cost, in US dollars.
type S3Prices struct {
	Puts    float64 // of 1,000 PUT, POST or LIST requests
	Gets    float64 // of 1,000 GET requests
	Storage float64 // of a gigabyte (10⁹ bytes) for a month
}

// DefaultS3Prices are Amazon's list prices of S3 Standard in us-east-1.
func DefaultS3Prices() S3Prices { return S3Prices{Puts: 0.005, Gets: 0.0004, Storage: 0.023} }

// month is how long one is, on average.
const month = 365.25 / 12 * 24 * float64(time.Hour/time.Second) // seconds

// perMonth is what n requests a second cost in a month, at a price of 1,000.
func perMonth(n, price float64) float64 { return n * month / 1000 * price }

const (
	// batchWriters is how many objects are written at once as fast as possible, batchInFlight how
	// many there may be of a steady rate.
	batchWriters, batchInFlight = 8, 64
	// batchEvents is how many events the wall time is of.
	batchEvents = 1000
	// batchRate is events/s that arrive, unless --rate says otherwise.
	batchRate = 1000
)

// measureBatches writes the same events in objects of growing size: as fast as possible, and at a
// steady rate, where an event waits until its object is full.
func (k *s3Kit) measureBatches(ctx context.Context) error {
	prices, rate := k.bench.config.S3Prices, float64(batchRate)
	if set := k.bench.config.Settings.Rate; set != nil {
		rate = *set
	}
	cost := Series{Title: fmt.Sprintf("Cost of a month's events at %.0f/s", rate), X: "events of an object", Y: "US dollars", Kind: Shape, Note: "by list prices, from the requests and bytes of this run", LogY: true}
	latency := Series{Title: fmt.Sprintf("From arrival to stored at %.0f events/s", rate), X: "events of an object", Y: "ms", Kind: Absolute, LogY: true}
	for i, perObject := range k.plan.objectEvents {
		cost.Names = append(cost.Names, fmt.Sprint(perObject))
		o, err := newObjects(perObject)
		if err != nil {
			return err
		}
		name := fmt.Sprintf("objects of %d", perObject)
		k.bench.live(name)
		puts := int64(max(1, batchEvents/perObject))
		run := putMany(batchWriters, puts, k.plan.cell, func(n int64) error {
			return k.put(ctx, k.client, fmt.Sprintf("batch/%d/%020d", perObject, n), o.body(n))
		})
		if err := k.noteFailed(ctx, name, run); err != nil {
			return err
		}
		events := float64(run.done) * float64(perObject)
		k.bench.figure(Shape, fmt.Sprintf("%s: PUTs of %d events", name, batchEvents), batchEvents/float64(perObject), "requests")
		k.bench.figure(Absolute, fmt.Sprintf("%s: wall time of %d events, %d writers", name, batchEvents, batchWriters), run.took.Seconds()*batchEvents/events*1000, "ms")
		k.bench.figure(Shape, name+": bytes stored", o.bytesPerEvent(), "bytes/event")
		requests, storage := perMonth(rate/float64(perObject), prices.Puts), o.bytesPerEvent()*rate*month/1e9*prices.Storage
		k.bench.figure(Shape, fmt.Sprintf("%s: PUTs of a month at %.0f events/s", name, rate), requests, "US dollars")
		k.bench.figure(Shape, fmt.Sprintf("%s: storage of that month's events, a month", name), storage, "US dollars")
		cost.add("PUTs", float64(i), requests)
		cost.add("storage", float64(i), storage)

		steady := k.steady(ctx, o, rate, k.plan.cell)
		if steady.done+steady.failed == 0 && ctx.Err() == nil {
			k.bench.warn("%s: none was full within %v at %.0f events/s", name, k.plan.cell, rate)
			continue
		}
		if err := k.noteFailed(ctx, name+" at a steady rate", steady); err != nil {
			return err
		}
		q := quantilesOf(steady.latency)
		k.bench.figure(Absolute, fmt.Sprintf("%s: arrival to stored at %.0f events/s, p50", name, rate), q.P50, "ms")
		k.bench.figure(Absolute, fmt.Sprintf("%s: arrival to stored at %.0f events/s, p99", name, rate), q.P99, "ms")
		latency.Names = append(latency.Names, fmt.Sprint(perObject))
		latency.add("p50", float64(len(latency.Names)-1), max(q.P50, 0.001))
		latency.add("p99", float64(len(latency.Names)-1), max(q.P99, 0.001))
	}
	k.bench.series(cost)
	k.bench.series(latency)
	return nil
}

// steady lets events arrive at a rate, whatever becomes of the earlier ones, and writes each object
// when it is full. The latency of an event is from its arrival until its object is stored.
func (k *s3Kit) steady(ctx context.Context, o *objects, rate float64, length time.Duration) putRun {
	due := byRate(Load{Events: o.perObject, Rate: rate})
	t := newPutTally()
	slots := make(chan struct{}, batchInFlight)
	var wg sync.WaitGroup
	between := time.Duration(float64(time.Second) / rate)
	for n := int64(0); ctx.Err() == nil; n++ {
		first, _ := due(n)
		full := first + time.Duration(o.perObject-1)*between // when its last event arrives
		if full > length {
			break
		}
		pause(ctx, time.Until(t.began.Add(full)))
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			err := k.put(ctx, k.client, fmt.Sprintf("steady/%d/%020d", o.perObject, n), o.body(n))
			stored := time.Since(t.began)
			t.count(err)
			for i := range o.perObject {
				if err == nil {
					t.latency.record(n, stored-first-time.Duration(i)*between)
				}
			}
		})
	}
	wg.Wait()
	return t.run()
}

// objects are what is written: compressed lines, as an archive has them.
type objects struct {
	perObject int
	bodies    [][]byte
}

// objectKinds is how many different objects there are.
const objectKinds = 8

func newObjects(perObject int) (*objects, error) {
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	defer func() { _ = encoder.Close() }() // nothing is buffered
	r := rand.New(rand.NewPCG(uint64(perObject), 1))
	o := &objects{perObject: perObject}
	for range objectKinds {
		var lines []byte
		for range perObject {
			e, err := mixEvent(r, "s3")
			if err != nil {
				return nil, err
			}
			lines = append(append(lines, e.data...), '\n')
		}
		o.bodies = append(o.bodies, encoder.EncodeAll(lines, nil))
	}
	return o, nil
}

func (o *objects) body(n int64) []byte { return o.bodies[n%objectKinds] }

func (o *objects) bytesPerEvent() float64 {
	sum := 0
	for _, body := range o.bodies {
		sum += len(body)
	}
	return float64(sum) / float64(len(o.bodies)*o.perObject)
}
