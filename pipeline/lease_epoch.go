package pipeline

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// leaseEpoch knows whether the leases' bucket is the one it was. When JetStream's store is lost,
// or taken back, leases go with it, and their holders learn of it only with their next renewal:
// whoever takes a lane from that bucket at once may deliver beside its old holder.
type leaseEpoch struct {
	created time.Time // of the bucket, by the server; zero before the first look
	last    uint64    // its newest revision
	until   time.Time // no lease is taken before; zero: at any time
}

// leaseBucketInfo describes the stream under the leases' bucket.
type leaseBucketInfo func(context.Context) (*jetstream.StreamInfo, error)

// look reports that leases are not to be taken yet: not before the holders of those of the
// former bucket must have stopped.
func (e *leaseEpoch) look(ctx context.Context, bucket leaseBucketInfo, ttl time.Duration) (wait bool, err error) {
	info, err := bucket(ctx)
	if err != nil {
		return false, err
	}
	return e.see(info, time.Now(), ttl), nil
}

// take takes a free lane as takeLease does, but none while leases are not to be taken yet; that is
// errLeaseTaken too. The look comes after the taking: a bucket that was lost just before is seen.
func (e *leaseEpoch) take(ctx context.Context, kv leaseKV, bucket leaseBucketInfo, ttl time.Duration, place SinkLane, holder LeaseHolder) (*lease, error) {
	if e.waits(time.Now()) {
		return nil, errLeaseTaken
	}
	l, err := takeLease(ctx, kv, ttl, place, holder)
	if err != nil {
		return nil, err
	}
	wait, err := e.look(ctx, bucket, ttl)
	if wait {
		err = errLeaseTaken
	}
	if err != nil {
		return nil, errors.Join(err, l.release(ctx)) // else it expires, or is taken by the next attempt
	}
	return l, nil
}

// leaseBucket describes the stream under the leases' bucket as the server knows it now.
func (q *Queue) leaseBucket(ctx context.Context) (*jetstream.StreamInfo, error) {
	stream, err := q.js.Stream(ctx, "KV_"+leasesBucket)
	if err != nil {
		return nil, notReady(err, "bucket "+leasesBucket)
	}
	return stream.CachedInfo(), nil
}

// see compares the bucket with what it was at the last look. One that a janitor made again says
// so, also to a forwarder that has just started, and is waited for until its age, by the
// server's clock, is one TTL; else it is one TTL from when the change was seen.
func (e *leaseEpoch) see(info *jetstream.StreamInfo, now time.Time, ttl time.Duration) (wait bool) {
	another := !e.created.Equal(info.Created) || info.State.LastSeq < e.last
	if !e.created.IsZero() && another {
		e.until = now.Add(ttl)
	}
	if age := info.TimeStamp.Sub(info.Created); info.Config.Metadata[againMetadata] != "" && now.Add(ttl-age).After(e.until) {
		e.until = now.Add(ttl - age)
	}
	e.created, e.last = info.Created, info.State.LastSeq
	return e.waits(now)
}

func (e *leaseEpoch) waits(now time.Time) bool { return now.Before(e.until) }
