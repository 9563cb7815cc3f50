package intake

import (
	"time"

	"github.com/waybillhq/waybill/pipeline"
)

// Accepter makes events durable.
type Accepter interface {
	// Submit queues events as one unit, which is committed in one transaction or not
	// at all, and returns a channel that gets exactly one value: nil after the commit,
	// or an error that errors.Is pipeline.ErrOverloaded, pipeline.ErrUnavailable or
	// pipeline.ErrOutcomeUnknown. Units that one caller submits one after another are
	// committed in that order. Submit never blocks, and the channel's value comes in
	// bounded time, at stop too: callers wait for it whatever becomes of their client.
	Submit(events []pipeline.Event) <-chan error
}

// limited is an Accepter that can say beforehand that it takes nothing just now: before a
// body is read, and not after. The error is as of Submit.
type limited interface{ BacklogFull() error }

// Intake is what the HTTP and the gRPC front share.
type Intake struct {
	config   Config
	accepter Accepter
	budget   *Budget
	metrics  *metrics
}

// New returns an intake in front of accepter. It starts nothing.
func New(config Config, accepter Accepter) (*Intake, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	budget := NewBudget(config.BudgetBytes, config.patientShare())
	m, err := newMetrics(config.Meter, config.MetricKeys, budget)
	if err != nil {
		return nil, err
	}
	return &Intake{config: config, accepter: accepter, budget: budget, metrics: m}, nil
}

// Budget returns the byte budget that both fronts draw on.
func (in *Intake) Budget() *Budget { return in.budget }

// admit says why no request is taken just now, whatever it brings.
func (in *Intake) admit() (refusal, bool) {
	if l, ok := in.accepter.(limited); ok {
		if err := l.BacklogFull(); err != nil {
			return in.refusalOf(err), false
		}
	}
	return refusal{}, true
}

// submit makes the valid ones of items durable as one unit, waits for the answer and
// gives the reservation back. It waits even when the client is gone: the unit is in the
// engine's hands, and its bytes are held until the engine lets go of them.
func (in *Intake) submit(front string, started time.Time, items []item, held *reservation) error {
	events := validEvents(items)
	var err error
	if len(events) > 0 {
		accepting := in.config.Tracing.Accept(front, started, events)
		err = <-in.accepter.Submit(events)
		accepting.Answered(err)
	}
	held.release()
	in.metrics.answered(front, started, items, err)
	return err
}

func validEvents(items []item) []pipeline.Event {
	events := make([]pipeline.Event, 0, len(items))
	for i := range items {
		if items[i].fault == nil {
			events = append(events, items[i].event)
		}
	}
	return events
}

// held is what the items made by e keep in memory until they are answered for.
func (e *encoder) held(items []item) int64 {
	n := e.arena.unused
	for i := range items {
		n += int64(len(items[i].event.Encoded))
	}
	return n
}
