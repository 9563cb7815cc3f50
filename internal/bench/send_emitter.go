package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/waybillhq/waybill/pipeline"
)

// emitterStart bounds how long an emitter may take until it takes events.
const emitterStart = 30 * time.Second

// emitterSender emits the event of each call from this process.
type emitterSender struct {
	emitter *pipeline.Emitter
	stop    context.CancelFunc
	stopped chan error
}

var _ sender = (*emitterSender)(nil)

func newEmitterSender(databaseURL, natsURL string) (*emitterSender, error) {
	if databaseURL == "" || natsURL == "" {
		return nil, errors.New("an emitter needs the pipeline's database and NATS: give --database-url and --nats-url")
	}
	emitter, err := pipeline.NewEmitter(pipeline.DefaultEmitterConfig(databaseURL, natsURL))
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &emitterSender{emitter: emitter, stop: stop, stopped: make(chan error, 1)}
	go func() { s.stopped <- emitter.Run(ctx) }()
	starting, cancel := context.WithTimeout(ctx, emitterStart)
	defer cancel()
	if err := emitter.WaitReady(starting); err != nil {
		return nil, errors.Join(fmt.Errorf("start an emitter: %w", err), s.close())
	}
	return s, nil
}

func (s *emitterSender) close() error {
	s.stop()
	return <-s.stopped
}

func (s *emitterSender) send(ctx context.Context, c *call) outcome {
	event := c.message.event
	var id [eventIDBytes]byte
	c.ledger.writeID(id[:], c.first)
	event.ID = string(id[:])
	err := s.emitter.Emit(ctx, event)
	return outcome{err: err, unknown: errors.Is(err, pipeline.ErrOutcomeUnknown)}
}

// encodeEmitted is an event as an emitter takes it, which encodes it itself.
func encodeEmitted(events []event) message {
	e := events[0]
	return message{ids: []int{0}, event: pipeline.CloudEvent{Source: e.source, Type: e.typ, Data: pipeline.BinaryData(e.data)}}
}
