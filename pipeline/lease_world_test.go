package pipeline

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// leaseWorld is some forwarders that share the lanes of one sink out between them by real leases,
// over a bucket that loses and delays what it is asked and what it answers, in virtual time.
//
// A request may be lost on its way, or have its effect long after its caller has given up; its
// answer may be lost. A process that is paused does nothing and sees nothing; what it had asked
// for happens all the same. One that dies leaves everything as it is. Clocks agree on how long a
// second is, and on nothing else: no process looks at another's.
type leaseWorld struct {
	seed  uint64
	ttl   time.Duration
	lanes int

	mu      sync.Mutex // guards what follows
	created time.Time  // of the bucket
	wiped   time.Time
	keys    map[string]*leaseKey
	writes  uint64
	beats   map[string]time.Time
	faults  faults
	procs   []*leaseProc
	broken  string   // the first property that did not hold
	story   []string // what had an effect, for the one who looks into a failure
}

// faults say how bad the way to the bucket is.
type faults struct {
	lost   uint64 // percent of requests, and of answers
	delay  time.Duration
	pauses bool // between valid and a send
}

type leaseKey struct {
	value    []byte
	revision uint64
	deleted  bool
	ends     time.Time
}

// leaseProc is one run of a forwarder.
type leaseProc struct {
	w        *leaseWorld
	id       string
	holder   LeaseHolder
	epoch    leaseEpoch
	stop     context.CancelFunc // asks it to end in good order
	kill     context.CancelFunc // ends everything in it
	ended    chan struct{}
	requests map[string]uint64 // counted, by key; guarded by w.mu

	// Guarded by w.mu.
	dead   bool
	looked bool
	paused time.Time // until then
	held   map[int]*tenure
	stales map[*lease]int   // sends begun while another could have begun one
	pauses map[*lease]bool  // was paused since valid was asked
	cuts   time.Time        // until then nothing gets through
	works  map[*tenure]bool // whose worker has not ended
}

func newLeaseWorld(seed uint64, lanes int) *leaseWorld {
	return &leaseWorld{
		seed: seed, ttl: 6 * time.Second, lanes: lanes, created: time.Now(),
		keys: map[string]*leaseKey{}, beats: map[string]time.Time{}, faults: faults{delay: time.Millisecond, pauses: true},
	}
}

// random is drawn from the seed and what it is for alone, so that the order in which goroutines
// run changes nothing.
func (w *leaseWorld) random(what string, n uint64) uint64 {
	h := fnv.New64a()
	_ = binary.Write(h, binary.LittleEndian, [2]uint64{w.seed, n}) // a hash takes everything
	_, _ = h.Write([]byte(what))
	x := h.Sum64()
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

func (w *leaseWorld) broke(format string, args ...any) {
	if w.broken == "" {
		w.broken = fmt.Sprintf(format, args...) + "\n" + strings.Join(w.story[max(0, len(w.story)-60):], "\n")
	}
}

func (w *leaseWorld) tell(format string, args ...any) {
	w.story = append(w.story, time.Now().Format("04:05.000 ")+fmt.Sprintf(format, args...))
}

// wipe loses the bucket, and what is alive with it, and makes it anew. Its revisions go on, where
// JetStream's begin with 1 again: see what docs/guarantees.md says of a coincidence of the two.
func (w *leaseWorld) wipe() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tell("wiped")
	w.created, w.wiped = time.Now(), time.Now()
	w.keys, w.beats = map[string]*leaseKey{}, map[string]time.Time{}
}

// newest returns the revision that the next write of a key must name: 0 for none.
func (w *leaseWorld) newest(key string) *leaseKey {
	k := w.keys[key]
	if k == nil || !time.Now().Before(k.ends) {
		return &leaseKey{deleted: true}
	}
	return k
}

func (w *leaseWorld) write(key string, value []byte, deleted bool) uint64 {
	w.writes++
	late := time.Duration(w.random("expiry", w.writes) % uint64(500*time.Millisecond))
	w.tell("write %d of %s: %s", w.writes, key, value)
	w.keys[key] = &leaseKey{value: value, revision: w.writes, deleted: deleted, ends: time.Now().Add(w.ttl + late)}
	return w.writes
}

var errLeaseWorld = errors.New("the model says no")

// request carries effect to the bucket, and back.
func (p *leaseProc) request(ctx context.Context, key string, effect func() error) error {
	p.awake()
	w := p.w
	w.mu.Lock()
	p.requests[key]++
	draw := func(what string) uint64 { return w.random(p.holder.Instance+key+what, p.requests[key]) }
	there := time.Duration(draw("there") % uint64(w.faults.delay+1))
	back := time.Duration(draw("back") % uint64(w.faults.delay+1))
	lost, unanswered := draw("lost")%100 < w.faults.lost, draw("unanswered")%100 < w.faults.lost
	if time.Now().Before(p.cuts) {
		lost = lost || draw("cut")%2 == 0
		unanswered = true
	}
	dead := p.dead
	w.mu.Unlock()
	if dead {
		return errLeaseWorld
	}
	answer := make(chan error, 1)
	if !lost {
		time.AfterFunc(there, func() {
			w.mu.Lock()
			err := effect()
			if key != "beats" && key != "bucket" {
				w.tell("%s %s: %v", p.holder.Instance, key, err)
			}
			w.mu.Unlock()
			if !unanswered {
				time.AfterFunc(back, func() { answer <- err })
			}
		})
	}
	select {
	case err := <-answer:
		p.awake()
		return err
	case <-ctx.Done():
		p.awake()
		return ctx.Err()
	}
}

// awake returns when the process is not paused.
func (p *leaseProc) awake() {
	for {
		p.w.mu.Lock()
		d := time.Until(p.paused)
		dead := p.dead
		p.w.mu.Unlock()
		if d <= 0 || dead {
			return
		}
		time.Sleep(d)
	}
}

var _ leaseKV = (*leaseProc)(nil)

func (p *leaseProc) Create(ctx context.Context, key string, value []byte) (uint64, error) {
	var out uint64 // read after the answer, which comes after the effect
	err := p.request(ctx, key, func() error {
		if !p.w.newest(key).deleted {
			return jetstream.ErrKeyExists
		}
		out = p.w.write(key, value, false)
		return nil
	})
	if err != nil {
		return 0, err
	}
	return out, nil
}

func (p *leaseProc) Get(ctx context.Context, key string) ([]byte, uint64, error) {
	var found leaseKey
	err := p.request(ctx, key, func() error {
		if found = *p.w.newest(key); found.deleted {
			return jetstream.ErrKeyNotFound
		}
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	return found.value, found.revision, nil
}

func (p *leaseProc) Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	var out uint64
	err := p.request(ctx, key, func() error {
		if p.w.newest(key).revision != revision {
			return jetstream.ErrKeyRevisionMismatch
		}
		out = p.w.write(key, value, false)
		return nil
	})
	if err != nil {
		return 0, err
	}
	return out, nil
}

func (p *leaseProc) Delete(ctx context.Context, key string, revision uint64) error {
	return p.request(ctx, key, func() error {
		if p.w.newest(key).revision != revision {
			return jetstream.ErrKeyRevisionMismatch
		}
		p.w.write(key, nil, true)
		return nil
	})
}

func (p *leaseProc) bucket(ctx context.Context) (*jetstream.StreamInfo, error) {
	info := new(jetstream.StreamInfo)
	err := p.request(ctx, "bucket", func() error {
		info.Created, info.TimeStamp = p.w.created, time.Now()
		return nil
	})
	return info, err
}

// alive beats, and returns who else does.
func (p *leaseProc) alive(ctx context.Context) ([]string, error) {
	var seen []string
	err := p.request(ctx, "beats", func() error {
		p.w.beats[p.id] = time.Now()
		for id, at := range p.w.beats {
			if time.Since(at) < p.w.ttl {
				seen = append(seen, id)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return seen, nil
}

// begin starts a forwarder.
func (w *leaseWorld) begin(id string, run int) {
	killed, kill := context.WithCancel(context.Background())
	ctx, stop := context.WithCancel(killed)
	p := &leaseProc{
		w: w, id: id, stop: stop, kill: kill, ended: make(chan struct{}), requests: map[string]uint64{},
		holder: LeaseHolder{Forwarder: id, Instance: fmt.Sprintf("%s run %d", id, run)},
		held:   map[int]*tenure{}, stales: map[*lease]int{}, pauses: map[*lease]bool{}, works: map[*tenure]bool{},
	}
	w.mu.Lock()
	w.procs = append(w.procs, p)
	w.mu.Unlock()
	go p.run(ctx, killed)
}

// run is what Forwarder.Run does with leases.
func (p *leaseProc) run(ctx, killed context.Context) {
	defer close(p.ended)
	var holding sync.WaitGroup
	for ctx.Err() == nil {
		_ = p.rebalance(ctx, killed, &holding) // it is tried again
		pause(ctx, time.Second)
		p.awake()
	}
	p.w.mu.Lock()
	for _, t := range p.held {
		t.giveUp()
	}
	p.w.mu.Unlock()
	holding.Wait()
	if killed.Err() == nil {
		ctx, cancel := context.WithTimeout(killed, goodbyeTimeout)
		defer cancel()
		_ = p.request(ctx, "beats", func() error { delete(p.w.beats, p.id); return nil }) // or it expires
	}
}

func (p *leaseProc) rebalance(ctx, killed context.Context, holding *sync.WaitGroup) error {
	ctx, cancel := context.WithTimeout(ctx, consumerTimeout)
	defer cancel()
	ids, err := p.alive(ctx)
	if err != nil {
		return err
	}
	if _, err := p.epoch.look(ctx, p.bucket, p.w.ttl); err != nil {
		return err
	}
	p.w.mu.Lock()
	p.looked = true
	var missing []int
	for lane, id := range assign(p.w.lanes, append(ids, p.id)) {
		t := p.held[lane]
		switch {
		case id == p.id && t == nil:
			missing = append(missing, lane)
		case id != p.id && t != nil:
			t.giveUp()
		}
	}
	p.w.mu.Unlock()
	for _, lane := range missing {
		l, err := p.epoch.take(ctx, p, p.bucket, p.w.ttl, SinkLane{"ingress", lane}, p.holder)
		if errors.Is(err, errLeaseTaken) {
			continue
		}
		if err != nil {
			return err
		}
		p.hold(killed, holding, lane, l)
	}
	return nil
}

func (p *leaseProc) hold(killed context.Context, holding *sync.WaitGroup, lane int, l *lease) {
	t := &tenure{place: SinkLane{"ingress", lane}, lease: l, stop: 10 * time.Second, log: discardLog, drain: make(chan struct{})}
	t.work = func(ctx context.Context) {
		p.work(ctx, t)
		p.w.mu.Lock()
		delete(p.works, t)
		p.w.mu.Unlock()
	}
	p.w.mu.Lock()
	p.held[lane], p.works[t] = t, true
	p.w.mu.Unlock()
	holding.Go(func() {
		t.run(killed)
		p.w.mu.Lock()
		delete(p.held, lane)
		p.w.mu.Unlock()
	})
}

// work is what a worker does with its lease: it renews it before a session, and asks it before
// each send.
func (p *leaseProc) work(ctx context.Context, t *tenure) {
	for n := uint64(0); ; n++ {
		draw := func(what string, below time.Duration) time.Duration {
			return time.Duration(p.w.random(p.holder.Instance+t.place.leaseKey()+what, n) % uint64(below))
		}
		p.awake()
		if n%8 == 0 {
			for ctx.Err() == nil && t.lease.renew(ctx) != nil && t.lease.valid() == nil {
				pause(ctx, 50*time.Millisecond)
			}
		}
		select {
		case <-t.drain:
			return
		default:
		}
		if ctx.Err() != nil || t.lease.valid() != nil {
			return
		}
		if p.w.mayBegin(p, t) && draw("pauses", 32) == 0 {
			p.pause(draw("pause", 12*time.Second)) // the worst moment of all
			p.awake()
		}
		p.w.send(p, t, true)
		pause(ctx, draw("send", 3*time.Second))
		p.awake()
		p.w.send(p, t, false)
		select {
		case <-time.After(draw("rest", time.Second)):
		case <-t.drain:
		case <-ctx.Done():
		}
	}
}

func (p *leaseProc) pause(d time.Duration) {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	p.w.tell("%s is paused for %v", p.holder.Instance, d)
	if until := time.Now().Add(d); until.After(p.paused) {
		p.paused = until
	}
	for _, t := range p.held {
		p.pauses[t.lease] = true
	}
}

// others returns who else's lease of a lane is valid at this moment.
func (w *leaseWorld) others(p *leaseProc, t *tenure) (ids []string) {
	for _, other := range w.procs {
		held := other.held[t.place.Lane]
		if !other.dead && held != t && other.works[held] && held.lease.valid() == nil {
			ids = append(ids, other.holder.Instance)
		}
	}
	return ids
}

// mayBegin is the first property: who is told by its lease that it may go on is the only one.
func (w *leaseWorld) mayBegin(p *leaseProc, t *tenure) (mayPause bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if ids := w.others(p, t); len(ids) > 0 {
		w.broke("%v: the leases of %s and of %v are valid at once", t.place, p.holder.Instance, ids)
	}
	p.pauses[t.lease] = false
	return w.faults.pauses
}

// send is the second: a send that begins, or goes on, beside another holder is that of a process
// that was paused since its lease was asked, and the only one of its tenure.
func (w *leaseWorld) send(p *leaseProc, t *tenure, begins bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.dead {
		return
	}
	others := w.others(p, t)
	if len(others) == 0 {
		return
	}
	if !p.pauses[t.lease] {
		w.broke("%v: a send of %s is in flight while %v may begin one, and it was not paused", t.place, p.holder.Instance, others)
	}
	if begins {
		if p.stales[t.lease]++; p.stales[t.lease] > 1 {
			w.broke("%v: %s sent twice after its lease had ended", t.place, p.holder.Instance)
		}
	}
}

// vacant returns the lanes that nobody alive holds by a valid lease.
func (w *leaseWorld) vacant() (lanes []int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	held := map[int]bool{}
	for _, p := range w.procs {
		for lane, t := range p.held {
			if !p.dead && t.lease.valid() == nil {
				held[lane] = true
			}
		}
	}
	for lane := range w.lanes {
		if !held[lane] {
			lanes = append(lanes, lane)
		}
	}
	return lanes
}

// live returns the forwarders that run, and how many lanes each holds.
func (w *leaseWorld) live() (procs []*leaseProc, lanes []int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.procs {
		if !p.dead {
			procs, lanes = append(procs, p), append(lanes, len(p.held))
		}
	}
	return procs, lanes
}

// end ends a forwarder: at once, or in good order.
func (p *leaseProc) end(atOnce bool) {
	if atOnce {
		p.w.mu.Lock()
		p.dead = true
		p.w.mu.Unlock()
		p.kill()
	}
	p.stop()
	<-p.ended
	p.w.mu.Lock()
	p.dead = true
	p.w.mu.Unlock()
	p.kill()
}

// released says that no lease of a forwarder is left.
func (w *leaseWorld) released(p *leaseProc) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key, k := range w.keys {
		if !w.newest(key).deleted && strings.Contains(string(k.value), strconv.Quote(p.holder.Instance)) {
			return fmt.Errorf("%s stopped and left %s taken:\n%s", p.holder.Instance, key, strings.Join(w.story[max(0, len(w.story)-30):], "\n"))
		}
	}
	return nil
}

// settled waits until no lane is vacant and nobody has more than its share.
func (w *leaseWorld) settled(within time.Duration) error {
	var why string
	for began := time.Now(); time.Since(began) < within; time.Sleep(100 * time.Millisecond) {
		procs, lanes := w.live()
		vacant := w.vacant()
		if len(vacant) == 0 && slices.Max(lanes)-slices.Min(lanes) <= 1 {
			return nil
		}
		why = fmt.Sprintf("lanes %v have no holder, and %d forwarders hold %v", vacant, len(procs), lanes)
	}
	return fmt.Errorf("not within %v: %s; the bucket has %v", within, why, slices.Sorted(maps.Keys(w.keys)))
}
