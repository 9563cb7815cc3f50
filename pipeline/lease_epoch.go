package pipeline

import (
	"context"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// leaseEpoch knows whether the leases' bucket is the one it was. When JetStream's store is lost,
// or taken back, leases go with it, and their holders learn of it only with their next renewal:
// whoever takes a lane from that bucket at once may deliver beside its old holder.
type leaseEpoch struct {
	created time.Time // of the bucket, by the server; zero before the first look
	last    uint64    // its newest revision
	changed time.Time // when it was seen to be another one; zero: never
}

// unsettled reports that leases are not to be taken yet: not before the holders of those of the
// former bucket must have stopped.
func (e *leaseEpoch) unsettled(ctx context.Context, q *Queue, ttl time.Duration) (bool, error) {
	stream, err := q.js.Stream(ctx, "KV_"+leasesBucket)
	if err != nil {
		return false, notReady(err, "bucket "+leasesBucket)
	}
	return e.see(stream.CachedInfo(), time.Now(), ttl), nil
}

// see compares the bucket with what it was at the last look. One that a janitor made again says
// so, also to a forwarder that has just started, and is waited for until its age, by the
// server's clock, is one TTL; else it is one TTL from when the change was seen.
func (e *leaseEpoch) see(info *jetstream.StreamInfo, now time.Time, ttl time.Duration) (wait bool) {
	another := !e.created.Equal(info.Created) || info.State.LastSeq < e.last
	if !e.created.IsZero() && another {
		e.changed = now
	}
	e.created, e.last = info.Created, info.State.LastSeq
	young := info.Config.Metadata[againMetadata] != "" && info.TimeStamp.Sub(info.Created) < ttl
	return young || !e.changed.IsZero() && now.Sub(e.changed) < ttl
}
