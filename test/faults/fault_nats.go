package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/pipeline"
)

// wipe deletes everything that JetStream stored.
type wipe struct{ s *system }

func (f *wipe) inject(context.Context) error {
	f.s.watch.dies("nats-server")
	if err := f.s.signal("nats-server", syscall.SIGKILL); err != nil {
		return err
	}
	// One rename is faster than the supervisor.
	store, gone := filepath.Join(f.s.dir, "nats"), filepath.Join(f.s.dir, "nats-deleted")
	if err := os.Rename(store, gone); err != nil {
		return fmt.Errorf("delete JetStream's store: %w", err)
	}
	return os.RemoveAll(gone)
}

func (f *wipe) heal(ctx context.Context) error { return f.s.awaitStart(ctx, "nats-server") }

// deleteStream deletes a stream with its consumers.
type deleteStream struct {
	s  *system
	on string
}

func (f *deleteStream) inject(ctx context.Context) error {
	return f.s.untilNATS(ctx, func(ctx context.Context) error {
		return gone(f.s.js.DeleteStream(ctx, f.on))
	})
}

func (f *deleteStream) heal(context.Context) error { return nil }

// deleteConsumers deletes a sink's consumers.
type deleteConsumers struct {
	s  *system
	on string
}

func (f *deleteConsumers) inject(ctx context.Context) error {
	return f.s.untilNATS(ctx, func(ctx context.Context) error {
		stream, err := f.s.js.Stream(ctx, pipeline.EventsStream)
		if err != nil {
			return err
		}
		list := stream.ConsumerNames(ctx)
		var all []string
		for name := range list.Name() {
			if strings.HasPrefix(name, f.on+"-") {
				all = append(all, name)
			}
		}
		for _, name := range all {
			if err := gone(stream.DeleteConsumer(ctx, name)); err != nil {
				return err
			}
		}
		return list.Err()
	})
}

func (f *deleteConsumers) heal(context.Context) error { return nil }

// deleteBuckets deletes what is a hint only.
type deleteBuckets struct{ s *system }

func (f *deleteBuckets) inject(ctx context.Context) error {
	return f.s.untilNATS(ctx, func(ctx context.Context) error {
		list := f.s.js.KeyValueStoreNames(ctx)
		var all []string
		for name := range list.Name() {
			all = append(all, name)
		}
		for _, name := range all {
			if err := gone(f.s.js.DeleteKeyValue(ctx, name)); err != nil {
				return err
			}
		}
		return list.Error()
	})
}

func (f *deleteBuckets) heal(context.Context) error { return nil }

// gone takes what is missing for deleted.
func gone(err error) error {
	for _, missing := range []error{jetstream.ErrStreamNotFound, jetstream.ErrConsumerNotFound, jetstream.ErrBucketNotFound} {
		if errors.Is(err, missing) {
			return nil
		}
	}
	return err
}
