package main

import (
	"context"
	"time"

	"github.com/waybillhq/waybill/internal/devrun"
	"github.com/waybillhq/waybill/pipeline"
)

// smallQueueBytes is the smallest queue that there is.
const smallQueueBytes = 64 << 20

// natsConditions are queues of other sorts.
func natsConditions() []*condition {
	return []*condition{
		{
			name: clusterCondition, about: "three nats-servers, and three replicas of everything",
			setup: func(c *devrun.Config, _ *system) error {
				c.NATSServers, c.Queue.Replicas = len(natsServers), len(natsServers)
				return nil
			},
			excludes: needsOneServer,
		},
		{
			name: "small-queue", about: "a queue of 64 MiB, events of up to 48 KB, and the endpoint down until the load has ended",
			setup: func(c *devrun.Config, _ *system) error {
				c.Queue.MaxBytes = smallQueueBytes
				return nil
			},
			loadBytes: 48 << 10,
			parts:     []string{"endpoint"}, effect: effect{retransmits: true},
			standing: func(s *system) fault { return &misbehave{s, `{"down":true}`} },
			excludes: takesFromStream, judge: judgeShed,
		},
	}
}

// judgeShed wants the queue to have run out: nothing but shedding takes the first message of
// the stream within a run.
func judgeShed(t *trial, r *result, _ *evidence) {
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	info, err := t.system.streamInfo(ctx, pipeline.EventsStream)
	switch {
	case err != nil:
		r.violation("the harness: look at the stream after the run: %v", err)
	case info.State.FirstSeq <= 1:
		r.violation("the harness: the queue never ran out: it holds %d of %d bytes after %v of load",
			info.State.Bytes, info.Config.MaxBytes, t.settings.length.Round(time.Second))
	default:
		r.seen("%d batches were shed from the queue", info.State.FirstSeq-1)
	}
}
