package pipeline

import (
	"context"
	"errors"
	"time"
)

// leaseEpoch knows whether the leases' bucket is the one it was. When JetStream's store is lost
// all leases go with it, and their holders learn of it only with their next renewal: whoever
// takes a lane from the new bucket at once may deliver beside its old holder.
type leaseEpoch struct {
	created time.Time // of the bucket, by the server; zero before the first look
	changed time.Time // when it was seen to be another one; zero: never
}

// look reports that leases are not to be taken yet: not before the holders of those of the
// former bucket must have stopped, one TTL after the change was seen. created asks for the
// bucket's creation. Only one that has looked before can see a change.
func (e *leaseEpoch) look(ctx context.Context, created func(context.Context) (time.Time, error), ttl time.Duration) (wait bool, err error) {
	at, err := created(ctx)
	if err != nil {
		return false, err
	}
	return e.see(at, time.Now(), ttl), nil
}

// take takes a free lane as takeLease does, but none while leases are not to be taken yet; that is
// errLeaseTaken too. The look comes after the taking: a bucket that was lost just before is seen.
func (e *leaseEpoch) take(ctx context.Context, kv leaseKV, created func(context.Context) (time.Time, error), ttl time.Duration, place SinkLane, holder LeaseHolder) (*lease, error) {
	if e.waits(time.Now(), ttl) {
		return nil, errLeaseTaken
	}
	l, err := takeLease(ctx, kv, ttl, place, holder)
	if err != nil {
		return nil, err
	}
	wait, err := e.look(ctx, created, ttl)
	if wait {
		err = errLeaseTaken
	}
	if err != nil {
		return nil, errors.Join(err, l.release(ctx)) // else it expires, or is taken by the next attempt
	}
	return l, nil
}

// leasesCreated returns when the leases' bucket was created, by the server's clock.
func (q *Queue) leasesCreated(ctx context.Context) (time.Time, error) {
	stream, err := q.js.Stream(ctx, "KV_"+leasesBucket)
	if err != nil {
		return time.Time{}, notReady(err, "bucket "+leasesBucket)
	}
	return stream.CachedInfo().Created, nil
}

func (e *leaseEpoch) see(created, now time.Time, ttl time.Duration) (wait bool) {
	if !e.created.IsZero() && !e.created.Equal(created) {
		e.changed = now
	}
	e.created = created
	return e.waits(now, ttl)
}

func (e *leaseEpoch) waits(now time.Time, ttl time.Duration) bool {
	return !e.changed.IsZero() && now.Sub(e.changed) < ttl
}
