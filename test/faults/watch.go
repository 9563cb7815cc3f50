package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/waybillhq/waybill/internal/procstat"
	"github.com/waybillhq/waybill/pipeline"
)

// watch looks at the processes while things break: their memory, their ends, and how long
// the lanes of a forwarder that died are without one.
type watch struct {
	mu       sync.Mutex       // guards what follows
	rss      map[string]int64 // by part, the highest, bytes
	expected map[string]expectation
	problems []string
	log      []string // what the supervisors said, with times
	stopping bool

	holders   map[string]pipeline.LeaseHolder
	orphans   []*orphaned
	takeovers []takeover

	rebalances []rebalance
	// troubled are the parts that may end by themselves now, as often as they like.
	troubled map[string]bool
}

// rebalance is how long it took until all lanes were spread evenly over new forwarders.
type rebalance struct {
	Forwarders int       `json:"forwarders"` // old and new ones
	Seconds    float64   `json:"rebalance_seconds"`
	since      time.Time // when the new ones were started
}

// balanced notes a rebalance that is over.
func (w *watch) balanced(forwarders int, since time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rebalances = append(w.rebalances, rebalance{forwarders, time.Since(since).Seconds(), since})
}

// trouble says whether a part may end by itself.
func (w *watch) trouble(name string, may bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.troubled[name] = may
}

// hasEnded is nil once the part that was asked to end did.
func (w *watch) hasEnded(name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e, waiting := w.expected[name]; waiting && !e.ended {
		return errors.New("it has not ended")
	}
	return nil
}

// expectation is an end that a fault asked for.
type expectation struct {
	since    time.Time
	graceful bool // it must end by itself, in time and well
	ended    bool
}

// orphaned are lanes whose forwarder died.
type orphaned struct {
	forwarder string
	since     time.Time
	lanes     int               // how many it had
	left      map[string]string // of them, lane of a sink → instance that had it
}

// takeover is how long lanes were without a forwarder.
type takeover struct {
	Forwarder string    `json:"forwarder"`
	Lanes     int       `json:"lanes"`
	Seconds   float64   `json:"seconds"`
	since     time.Time // of the death
}

func newWatch() *watch {
	return &watch{rss: map[string]int64{}, expected: map[string]expectation{}, troubled: map[string]bool{}, holders: map[string]pipeline.LeaseHolder{}}
}

// dies says that a part is about to be killed.
func (w *watch) dies(name string) {
	w.expect(name, false)
	w.lapses(name)
}

// stops says that a part is about to be asked to end.
func (w *watch) stops(name string) { w.expect(name, true) }

func (w *watch) expect(name string, graceful bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.expected[name] = expectation{since: time.Now(), graceful: graceful}
}

// lapses says that a forwarder is about to lose its lanes.
func (w *watch) lapses(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	o := &orphaned{forwarder: name, since: time.Now(), left: map[string]string{}}
	for lane, h := range w.holders {
		if h.Forwarder == name {
			o.left[lane] = h.Instance
		}
	}
	if o.lanes = len(o.left); o.lanes > 0 {
		w.orphans = append(w.orphans, o)
	}
}

// awaited is nil once the part that was to end runs again.
func (w *watch) awaited(name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e, waiting := w.expected[name]; waiting {
		return fmt.Errorf("it has ended: %v", e.ended)
	}
	return nil
}

// hear is what the supervisors say to.
func (w *watch) hear(line string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, time.Now().UTC().Format("15:04:05.000 ")+line)
	name, what, _ := strings.Cut(line, " ")
	switch {
	case w.stopping:
	case strings.HasPrefix(what, "ended: "):
		w.ended(name, strings.TrimPrefix(what, "ended: "))
	case strings.HasPrefix(what, "runs again"):
		delete(w.expected, name)
	}
}

// ended judges the end of a part. w.mu is held.
func (w *watch) ended(name, how string) {
	e, expected := w.expected[name]
	took := time.Since(e.since)
	switch {
	case w.troubled[name]:
	case !expected || e.ended:
		w.problems = append(w.problems, fmt.Sprintf("%s ended by itself: %s", name, how))
	case e.graceful && !strings.HasPrefix(how, "exit status 0"):
		w.problems = append(w.problems, fmt.Sprintf("%s was asked to stop and ended badly: %s", name, how))
	case e.graceful && took > stopLimit:
		w.problems = append(w.problems, fmt.Sprintf("%s was asked to stop and took %.1f s", name, took.Seconds()))
	}
	e.ended = true
	w.expected[name] = e
}

// stopLimit is how long a process may take to stop.
const stopLimit = 25 * time.Second

// ending says that everything is about to be stopped.
func (w *watch) ending() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopping = true
}

// lookEvery is the pause between looks.
const lookEvery = 200 * time.Millisecond

// run looks until ctx ends.
func (w *watch) run(ctx context.Context, s *system) {
	for ctx.Err() == nil {
		for _, p := range s.stack.Parts() {
			if m, err := procstat.ReadMemory(p.PID); err == nil {
				w.sample(p.Name, m.Peak)
			}
		}
		once, cancel := context.WithTimeout(ctx, time.Second)
		holders, err := pipeline.LaneHolders(once, s.queue)
		cancel()
		if err == nil {
			w.see(byName(holders))
		}
		sleep(ctx, lookEvery)
	}
}

func (w *watch) sample(name string, bytes int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rss[name] = max(w.rss[name], bytes)
}

// see compares who has the lanes with who had them.
func (w *watch) see(holders map[string]pipeline.LeaseHolder) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.holders = holders
	var still []*orphaned
	for _, o := range w.orphans {
		// Each counts once it has another holder: by the time the last one has, the first may be
		// back with its old one, which goes on.
		maps.DeleteFunc(o.left, func(lane, instance string) bool {
			h, held := holders[lane]
			return held && h.Instance != instance
		})
		if len(o.left) > 0 {
			still = append(still, o)
			continue
		}
		w.takeovers = append(w.takeovers, takeover{o.forwarder, o.lanes, time.Since(o.since).Seconds(), o.since})
	}
	w.orphans = still
}

// byName names what a lease is for.
func byName[K comparable](leases map[K]pipeline.LeaseHolder) map[string]pipeline.LeaseHolder {
	named := make(map[string]pipeline.LeaseHolder, len(leases))
	for of, holder := range leases {
		named[fmt.Sprint(of)] = holder
	}
	return named
}

// saveLog writes what the supervisors said.
func (w *watch) saveLog(path string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := os.WriteFile(path, []byte(strings.Join(w.log, "\n")+"\n"), 0o644); err != nil {
		return fmt.Errorf("keep the supervisors' words: %w", err)
	}
	return nil
}
