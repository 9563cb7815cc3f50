package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// Checks are what a process looks at to say whether it is ready, and what somebody should know.
// They are safe for concurrent use.
type Checks struct {
	started time.Time

	mu      sync.Mutex // guards what follows
	checks  []healthCheck
	since   map[string]time.Time // of failing checks
	buffers []func() []Buffer
}

// NewChecks returns no checks: a process without any is unready, since its work has not begun.
func NewChecks() *Checks {
	return &Checks{started: time.Now().UTC(), since: map[string]time.Time{}}
}

// healthCheck is one thing to look at. It returns nil or what is wrong, in words for people.
type healthCheck struct {
	name string
	look func() error
	// degrading checks do not make a process unready: it does its work, and somebody
	// should know.
	degrading bool
}

// Problem is one failing check.
type Problem struct {
	Check   string    `json:"check"`
	Problem string    `json:"problem"`
	Since   time.Time `json:"since"` // when it was first seen failing

	err error // that Problem is the text of; nil where there is none
}

func (p Problem) String() string {
	return fmt.Sprintf("%s: %s (since %s)", p.Check, p.Problem, p.Since.Format(time.RFC3339))
}

// Readiness is what the checks found. It is the body of /readyz.
type Readiness struct {
	Ready    bool      `json:"ready"`
	Problems []Problem `json:"problems,omitempty"` // what makes it unready
	Degraded []Problem `json:"degraded,omitempty"` // what somebody should know
}

// all are the problems, those that make it unready first.
func (r Readiness) all() []Problem { return slices.Concat(r.Problems, r.Degraded) }

// Add makes readiness depend on a check, which must be quick; Degrade only mentions it.
func (c *Checks) Add(name string, look func() error)     { c.append(healthCheck{name, look, false}) }
func (c *Checks) Degrade(name string, look func() error) { c.append(healthCheck{name, look, true}) }

func (c *Checks) append(added healthCheck) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.checks = append(c.checks, added)
}

// Watch mentions buffers that are nearly full, and exports how full they are.
func (c *Checks) Watch(buffers func() []Buffer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.buffers) == 0 {
		c.checks = append(c.checks, healthCheck{"buffers", c.nearlyFull, true})
	}
	c.buffers = append(c.buffers, buffers)
}

// nearFull is the part of a buffer from which on somebody should know. EVENTS sheds at 0.9.
const nearFull = 0.8

// nearlyFull names the buffers that are nearly full, or returns nil. The caller holds mu.
func (c *Checks) nearlyFull() error {
	var errs []error
	for _, list := range c.buffers {
		for _, b := range list() {
			if !b.Busy && b.Fill() >= nearFull {
				errs = append(errs, fmt.Errorf("%s: %d of %d %s (%.0f %%)", b.Name, b.Used, b.Limit, b.Unit, 100*b.Fill()))
			}
		}
	}
	return errors.Join(errs...)
}

// Readiness runs the checks.
func (c *Checks) Readiness() Readiness {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := Readiness{Ready: true}
	if len(c.checks) == 0 {
		out.Ready = false
		out.Problems = []Problem{{Check: "start", Problem: "it has not begun to work yet; its log says what it waits for", Since: c.started}}
	}
	for _, check := range c.checks {
		err := check.look()
		if err == nil {
			delete(c.since, check.name)
			continue
		}
		if c.since[check.name].IsZero() {
			c.since[check.name] = time.Now().UTC()
		}
		p := Problem{Check: check.name, Problem: err.Error(), Since: c.since[check.name], err: err}
		if check.degrading {
			out.Degraded = append(out.Degraded, p)
			continue
		}
		out.Ready = false
		out.Problems = append(out.Problems, p)
	}
	return out
}

// Summary is what is wrong, and since when, in a few words, for the heartbeat; empty: nothing.
func (c *Checks) Summary() string {
	var all []string
	for _, p := range c.Readiness().all() {
		all = append(all, p.String())
	}
	text := strings.Join(all, "; ")
	return strings.ToValidUTF8(text[:min(len(text), maxSummary)], "")
}

// maxSummary bounds what a heartbeat says, in bytes.
const maxSummary = 1 << 10

// Export makes the instruments that say what is wrong and how full the buffers are.
func (c *Checks) Export(m metric.Meter) error {
	fail := func(err error) error { return fmt.Errorf("export the state of the process: %w", err) }
	problem, err := m.Int64ObservableGauge("waybill.health.problem", metric.WithUnit("{problem}"),
		metric.WithDescription("1 while a check of /readyz fails, else 0; by check, and by severity: unready or degraded"))
	if err != nil {
		return fail(err)
	}
	fill, err := m.Float64ObservableGauge("waybill.buffer.utilization", metric.WithUnit("1"),
		metric.WithDescription("The part of a bounded buffer that is full, by buffer"))
	if err != nil {
		return fail(err)
	}
	_, err = m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		c.observe(o, problem, fill)
		return nil
	}, problem, fill)
	if err != nil {
		return fail(err)
	}
	return nil
}

// observe runs the checks and looks at the buffers.
func (c *Checks) observe(o metric.Observer, problem metric.Int64Observable, fill metric.Float64Observable) {
	failing := map[string]bool{}
	for _, p := range c.Readiness().all() {
		failing[p.Check] = true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, check := range c.checks {
		severity, value := "unready", int64(0)
		if check.degrading {
			severity = "degraded"
		}
		if failing[check.name] {
			value = 1
		}
		o.ObserveInt64(problem, value, metric.WithAttributes(attribute.String("check", check.name), attribute.String("severity", severity)))
	}
	for _, buffers := range c.buffers {
		for _, b := range buffers() {
			if b.Limit > 0 {
				o.ObserveFloat64(fill, b.Fill(), metric.WithAttributes(attribute.String("buffer", b.Name)))
			}
		}
	}
}
