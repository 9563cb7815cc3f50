package pipeline

import (
	"context"
	"time"
)

// leaseEpoch knows whether the leases' bucket is the one it was. When JetStream's store is lost
// all leases go with it, and their holders learn of it only with their next renewal: whoever
// takes a lane from the new bucket at once may deliver beside its old holder.
type leaseEpoch struct {
	created time.Time // of the bucket, by the server; zero before the first look
	changed time.Time // when it was seen to be another one; zero: never
}

// unsettled reports that leases are not to be taken yet: not before the holders of those of the
// former bucket must have stopped, one TTL after the change was seen.
func (e *leaseEpoch) unsettled(ctx context.Context, q *Queue, ttl time.Duration) (bool, error) {
	stream, err := q.js.Stream(ctx, "KV_"+leasesBucket)
	if err != nil {
		return false, notReady(err, "bucket "+leasesBucket)
	}
	return e.see(stream.CachedInfo().Created, time.Now(), ttl), nil
}

func (e *leaseEpoch) see(created, now time.Time, ttl time.Duration) (wait bool) {
	if !e.created.IsZero() && !e.created.Equal(created) {
		e.changed = now
	}
	e.created = created
	return !e.changed.IsZero() && now.Sub(e.changed) < ttl
}
