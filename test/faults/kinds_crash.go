package main

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/pipeline/failpoint"
)

// crashKinds are processes that die, or are stopped, at one of their fail points.
func crashKinds() []*kind {
	of := func(name string, targets []string, e effect) *kind {
		return &kind{
			name: "crash-" + name, about: "kill -9 at one of its fail points", targets: targets, parts: itself, effect: e,
			min: 3 * second, max: 5 * second, // to come there, and to be started again
			make: func(s *system, on string) fault { return &crashAt{ordered{s: s, on: on}} },
		}
	}
	return []*kind{
		of("ingest", ingests, effect{retransmits: true}),
		of("forwarder", forwarders, effect{doubles: true, leases: true}),
		of("janitor", janitors, effect{retransmits: true}),
		{
			name: "pause-ingest-in-transaction", about: "SIGSTOP while it holds heads, later SIGCONT", targets: ingests,
			min: 14 * second, max: 15 * second, effect: effect{retransmits: true}, // above headsLimit
			parts: func(on string) []string { return []string{on, "postgres"} },
			make:  func(s *system, on string) fault { return &pauseInTransaction{ordered: ordered{s: s, on: on}} },
		},
	}
}

// picker chooses fail points, as the seed says.
type picker struct {
	seed uint64

	mu     sync.Mutex // guards picked
	picked map[string]int
}

// mostHits bounds which hit of a point a process dies at: the first ones after the order
// find it less busy.
const mostHits = 4

// pick returns a point that a process comes to under load, and at which hit to act.
func (p *picker) pick(name string) (failPoint, int) {
	points := pointsOf(kindOf(name))
	n := p.number(name, len(points)*mostHits)
	return points[n/mostHits], 1 + n%mostHits
}

// number returns the next number of a process, below a bound.
func (p *picker) number(name string, below int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.picked == nil {
		p.picked = map[string]int{}
	}
	h := fnv.New64a()
	_, _ = fmt.Fprint(h, name, p.picked[name]) // a hash takes everything
	p.picked[name]++
	return rand.New(rand.NewPCG(p.seed, h.Sum64())).IntN(below)
}

// ordered is an order to a process, and somebody who waits for it to be carried out.
type ordered struct {
	s      *system
	on     string
	point  string
	hit    int
	cancel context.CancelFunc
	done   sync.WaitGroup
	err    error // of then
}

// give gives an order. then is called at once when the process has come to the point.
func (o *ordered) give(ctx context.Context, action string, nth int, then func(context.Context) error) error {
	if err := o.s.arm(o.on, o.point, action, nth); err != nil {
		return err
	}
	ctx, o.cancel = context.WithCancel(ctx)
	o.done.Go(func() {
		for ; !o.s.struck(o.on); sleep(ctx, 5*time.Millisecond) {
			if ctx.Err() != nil {
				return
			}
		}
		o.hit = 1
		o.err = then(context.WithoutCancel(ctx))
	})
	return nil
}

// takeBack takes the order back, unless it was carried out, which it reports.
func (o *ordered) takeBack() (struck bool, err error) {
	if o.cancel == nil {
		return false, nil // it was not given
	}
	struck, err = o.s.disarm(o.on)
	o.cancel()
	o.done.Wait()
	return struck, errors.Join(err, o.err)
}

func (o *ordered) hits() map[string]int { return map[string]int{o.point: o.hit} }

// crashAt kills a process at a fail point. Where another fault keeps it from coming there in
// time nothing happens, and that it was not hit is in the result.
type crashAt struct{ ordered }

func (f *crashAt) inject(ctx context.Context) error {
	point, nth := f.s.points.pick(f.on)
	f.point = point.name
	f.s.watch.expect(f.on, false)
	return f.give(ctx, failpoint.Kill, nth, func(context.Context) error {
		f.s.watch.lapses(f.on)
		return nil
	})
}

func (f *crashAt) heal(ctx context.Context) error {
	struck, err := f.takeBack()
	if !struck {
		f.s.watch.spared(f.on)
		return err
	}
	f.hit = 1
	return errors.Join(err, f.s.awaitStart(ctx, f.on))
}

// spared says that a part will not end after all.
func (w *watch) spared(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.expected, name)
}

// pauseInTransaction stops an ingest that has moved heads and has not committed, and wants
// them to be free soon.
type pauseInTransaction struct {
	ordered
	pid int
}

// transactionPoints are those at which it holds heads: Postgres itself takes them back at the
// first, and a janitor at the second.
var transactionPoints = []string{"ingest/in-transaction", "ingest/in-copy"}

// headsLimit is how long a stopped ingest may hold heads: for as long as a statement may take,
// where it stands in a COPY, and some time until a janitor looks.
func headsLimit() time.Duration {
	return pipeline.DefaultStoreConfig("").StatementTimeout + 3*time.Second
}

func (f *pauseInTransaction) inject(ctx context.Context) error {
	f.pid = f.s.pid(f.on)
	f.point = transactionPoints[f.s.points.number(f.on, len(transactionPoints))]
	return f.give(ctx, failpoint.Stop, 1, f.s.headsAreFree)
}

// headsAreFree waits until every head can be locked.
func (s *system) headsAreFree(ctx context.Context) error {
	return poll(ctx, headsLimit(), "the heads are free", func(ctx context.Context) error {
		conn, err := pgx.Connect(ctx, s.stack.DatabaseURL)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close(ctx) }() // the locks end with the statement
		_, err = conn.Exec(ctx, `SET lock_timeout = '500ms'; SELECT FROM waybill.heads ORDER BY page FOR UPDATE`)
		return err
	})
}

func (f *pauseInTransaction) heal(context.Context) error {
	struck, err := f.takeBack()
	if !struck {
		return err
	}
	f.hit = 1
	if cont := syscall.Kill(f.pid, syscall.SIGCONT); cont != nil {
		err = errors.Join(err, fmt.Errorf("continue %s: %w", f.on, cont))
	}
	return err
}

// counting is a fault that knows what it hit, and how often: of one that hit nothing a result
// should not look as if it had been survived.
type counting interface {
	hits() map[string]int
}

func hitsOf(f fault) map[string]int {
	if c, ok := f.(counting); ok {
		return c.hits()
	}
	return nil
}
