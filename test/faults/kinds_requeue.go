package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/waybillhq/waybill/internal/devrun"
	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/test/faults/proxy"
)

const (
	// shortTTL is how long events may wait where they are to expire in the queue.
	shortTTL = 3 * time.Second
	// requeueMost bounds what the operator puts back: each becomes a batch of its own.
	requeueMost = 300
)

// requeueKinds are operators who requeue too early.
func requeueKinds() []*kind {
	return []*kind{{
		name: "requeue-expired", about: "a sink is down until events expire, which are requeued while they are still queued",
		targets: []string{ingressSink, archiveSink},
		// Above the TTL and the janitors' pause between looks for what has expired.
		min: 9 * second, max: 11 * second,
		effect: effect{doubles: true, retransmits: true, codes: []string{"expired"}},
		parts: func(on string) []string {
			if on == archiveSink {
				return s3Ways()
			}
			return []string{"endpoint"}
		},
		setup: func(c *devrun.Config, _ *system) error {
			addEnv(c, func(name string) []string {
				if slices.Contains(ingests, name) {
					return []string{"WAYBILL_EVENT_TTL=" + shortTTL.String()}
				}
				return nil
			})
			return nil
		},
		make: func(s *system, on string) fault { return &requeueEarly{s: s, sink: on, down: sinkDown(s, on)} },
	}}
}

// sinkDown takes a sink away from all.
func sinkDown(s *system, sink string) fault {
	if sink == archiveSink {
		return s3Off(proxy.Fault{Mode: proxy.Cut})(s)
	}
	return &misbehave{s, `{"down":true}`}
}

// requeueEarly takes a sink away and, before it comes back, requeues what has expired.
type requeueEarly struct {
	s    *system
	sink string
	down fault
}

// requeuesSQL makes Postgres note what was requeued, as it notes retransmits: the event
// comes again, or late.
const requeuesSQL = `
	CREATE OR REPLACE FUNCTION public.note_requeue() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.retransmits VALUES (NEW.position >> 12, NEW.token, 0, 1, ARRAY[NEW.sink]);
		RETURN NULL;
	END $$;
	CREATE OR REPLACE TRIGGER note_requeue AFTER UPDATE ON waybill.dead_letters
		FOR EACH ROW WHEN (OLD.requeued_at IS NULL AND NEW.requeued_at IS NOT NULL) EXECUTE FUNCTION public.note_requeue();`

func (f *requeueEarly) inject(ctx context.Context) error {
	if err := f.s.exec(ctx, requeuesSQL); err != nil {
		return err
	}
	return f.down.inject(ctx)
}

func (f *requeueEarly) heal(ctx context.Context) error {
	requeued := poll(ctx, startLimit, "what has expired for "+f.sink+" is requeued", f.requeue)
	queued := f.stillQueued(ctx)
	return errors.Join(requeued, queued, f.down.heal(ctx))
}

func (f *requeueEarly) requeue(ctx context.Context) error {
	store, err := f.s.stack.OpenStore(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	walk, err := store.WalkLetters(ctx, pipeline.LetterFilter{Sink: f.sink, Code: "expired"})
	if err != nil {
		return err
	}
	done, err := walk.Requeue(ctx, requeueMost, 0)
	if err == nil && done.Letters == 0 {
		err = errors.New("nothing has expired yet")
	}
	return err
}

// stillQueued wants the sink's queue not to be empty: it holds what was requeued, the oldest
// there is.
func (f *requeueEarly) stillQueued(ctx context.Context) error {
	return f.s.untilNATS(ctx, func(ctx context.Context) error {
		stream, err := f.s.js.Stream(ctx, pipeline.EventsStream)
		if err != nil {
			return err
		}
		list, queued := stream.ListConsumers(ctx), uint64(0)
		for info := range list.Info() {
			if strings.HasPrefix(info.Name, f.sink+"-") {
				queued += info.NumPending + uint64(info.NumAckPending)
			}
		}
		if list.Err() == nil && queued == 0 {
			return fmt.Errorf("nothing is queued for %s", f.sink)
		}
		return list.Err()
	})
}
