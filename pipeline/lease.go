package pipeline

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/pipeline/failpoint"
)

var (
	// errLeaseTaken means that another forwarder has the lane.
	errLeaseTaken = errors.New("the lane is leased to another forwarder")
	// errLeaseLost means that another forwarder has the lane, or may have it soon.
	errLeaseLost = errors.New("the lease of the lane is lost")
)

// LeaseHolder is the value of a lease: who has a lane of a sink.
type LeaseHolder struct {
	Forwarder string    `json:"forwarder"`
	Instance  string    `json:"instance"` // of the process: an id may be used again
	Since     time.Time `json:"since"`    // by the forwarder's clock
}

// leaseKV is the bucket of the leases, a key that disappears when it was not written for the TTL.
// Whoever calls it retries; after an error other than those named the outcome is unknown, and a
// request may also have its effect after its caller has given up. It is safe for concurrent use.
type leaseKV interface {
	// Create stores a value under a key that is free, else jetstream.ErrKeyExists.
	Create(ctx context.Context, key string, value []byte) (revision uint64, err error)
	// Get returns the value, or jetstream.ErrKeyNotFound.
	Get(ctx context.Context, key string) (value []byte, revision uint64, err error)
	// Update stores a value where the revision is the newest of the key, else it returns
	// jetstream.ErrKeyRevisionMismatch.
	Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error)
	// Delete frees a key where the revision is the newest.
	Delete(ctx context.Context, key string, revision uint64) error
}

// leases is the leaseKV of a bucket.
type leases struct{ kv jetstream.KeyValue }

var _ leaseKV = leases{}

func (l leases) Create(ctx context.Context, key string, value []byte) (uint64, error) {
	return l.kv.Create(ctx, key, value)
}

func (l leases) Get(ctx context.Context, key string) ([]byte, uint64, error) {
	entry, err := l.kv.Get(ctx, key)
	if err != nil {
		return nil, 0, err
	}
	return entry.Value(), entry.Revision(), nil
}

func (l leases) Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	return l.kv.Update(ctx, key, value, revision)
}

func (l leases) Delete(ctx context.Context, key string, revision uint64) error {
	return l.kv.Delete(ctx, key, jetstream.LastRevision(revision))
}

// lease is the right to deliver a lane to a sink, as a revision of a key that disappears
// when it is not renewed for ttl. It is safe for concurrent use: its worker and its keeper
// share it.
//
// It is a hint: a forwarder that was paused at the wrong moment may go on for an instant
// after its end. What then keeps a lane consistent is that a takeover resets the consumer
// and that receipts name batches.
type lease struct {
	kv    leaseKV
	key   string
	value []byte // tells this tenure from any other
	ttl   time.Duration

	turn chan struct{} // capacity 1: held by the one that talks to the server

	mu        sync.Mutex // guards what follows
	revision  uint64
	confirmed time.Time // just before the last request that succeeded was sent
	lost      error
}

// takeLease takes a free lane. errLeaseTaken means that it is not free; after any other
// error the lane may or may not be taken, and the next call finds out.
func takeLease(ctx context.Context, kv leaseKV, ttl time.Duration, place SinkLane, holder LeaseHolder) (*lease, error) {
	value, err := json.Marshal(holder)
	if err != nil {
		return nil, fmt.Errorf("encode lease: %w", err)
	}
	l := &lease{kv: kv, key: place.leaseKey(), value: value, ttl: ttl, turn: make(chan struct{}, 1)}
	l.confirmed = time.Now()
	failpoint.Hit("forwarder/before-take")
	l.revision, err = kv.Create(ctx, l.key, value)
	err = failpoint.Err("forwarder/after-take", err)
	if errors.Is(err, jetstream.ErrKeyExists) {
		err = l.retake(ctx, holder)
	}
	if err != nil {
		return nil, fmt.Errorf("take %v: %w", place, err)
	}
	return l, nil
}

// retake takes a lease that this very process left behind: by an attempt to take or to
// give back whose answer was lost.
func (l *lease) retake(ctx context.Context, holder LeaseHolder) error {
	value, revision, err := l.kv.Get(ctx, l.key)
	if err != nil {
		return fmt.Errorf("read lease %s: %w", l.key, err)
	}
	var present LeaseHolder
	if json.Unmarshal(value, &present) != nil || present.Instance != holder.Instance {
		return errLeaseTaken
	}
	l.confirmed = time.Now()
	l.revision, err = l.kv.Update(ctx, l.key, l.value, revision)
	if err != nil {
		return fmt.Errorf("retake lease %s: %w", l.key, err)
	}
	return nil
}

// patience is how long after the last confirmation the holder goes on: what is left of the
// TTL is for a send in flight to end before another forwarder starts.
func (l *lease) patience() time.Duration { return l.ttl * 2 / 3 }

// expiry is the moment from which the holder must not go on.
func (l *lease) expiry() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.confirmed.Add(l.patience())
}

// valid returns nil while the holder may go on, or errLeaseLost with the reason.
func (l *lease) valid() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost == nil && time.Since(l.confirmed) > l.patience() {
		l.lost = fmt.Errorf("%w: not renewed for %v", errLeaseLost, time.Since(l.confirmed).Round(time.Millisecond))
	}
	return l.lost
}

func (l *lease) lose(why string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost == nil {
		l.lost = fmt.Errorf("%w: %s", errLeaseLost, why)
	}
	return l.lost
}

// renew confirms by compare-and-swap that the lane is still this forwarder's. Every error
// but errLeaseLost means that the outcome is unknown.
func (l *lease) renew(ctx context.Context) error {
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return fmt.Errorf("renew lease %s: %w", l.key, ctx.Err())
	}
	if err := l.valid(); err != nil {
		return err
	}
	ctx, cancel := context.WithDeadline(ctx, l.expiry())
	defer cancel()
	err := l.update(ctx, l.current())
	if !errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		return err
	}
	// An update whose answer was lost has moved the revision: then the value is still ours.
	value, revision, err := l.kv.Get(ctx, l.key)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return l.lose("it has expired")
	case err != nil:
		return fmt.Errorf("read lease %s: %w", l.key, err)
	case !bytes.Equal(value, l.value) || revision <= l.current():
		return l.lose("another forwarder has it")
	}
	err = l.update(ctx, revision)
	if errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		return l.lose("another forwarder has it")
	}
	return err
}

func (l *lease) current() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.revision
}

// update is called by the holder of the turn.
func (l *lease) update(ctx context.Context, revision uint64) error {
	before := time.Now()
	failpoint.Hit("forwarder/before-renew")
	next, err := l.kv.Update(ctx, l.key, l.value, revision)
	err = failpoint.Err("forwarder/after-renew", err)
	if err != nil {
		return fmt.Errorf("renew lease %s: %w", l.key, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.revision, l.confirmed = next, before
	return nil
}

// keep renews until ctx ends, and then returns nil, or until the lease is lost.
func (l *lease) keep(ctx context.Context) error {
	next := l.ttl / 3
	for {
		pause(ctx, min(next, time.Until(l.expiry())+time.Millisecond))
		if ctx.Err() != nil {
			return nil
		}
		next = l.ttl / 3
		if err := l.renew(ctx); err != nil && ctx.Err() == nil {
			if errors.Is(err, errLeaseLost) {
				return err
			}
			next = l.ttl / 12 // an error that returns at once must not be a busy loop
		}
	}
}

// release gives the lane back. The caller has stopped its workers and keep. An error costs
// the next holder the wait for the TTL.
func (l *lease) release(ctx context.Context) error {
	if l.valid() != nil {
		return nil // not ours to give
	}
	failpoint.Hit("forwarder/before-release")
	err := l.kv.Delete(ctx, l.key, l.current())
	if errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		// The renewal that keep was stopped in has moved the revision: then the value is still ours.
		value, revision, getErr := l.kv.Get(ctx, l.key)
		switch {
		case errors.Is(getErr, jetstream.ErrKeyNotFound) || getErr == nil && !bytes.Equal(value, l.value):
			return nil // not ours any more
		case getErr != nil:
			err = getErr
		default:
			err = l.kv.Delete(ctx, l.key, revision)
		}
	}
	if err = failpoint.Err("forwarder/after-release", err); err != nil {
		return fmt.Errorf("release lease %s: %w", l.key, err)
	}
	return nil
}

// LaneHolders returns who holds which lane of which sink, for people to look at.
func LaneHolders(ctx context.Context, q *Queue) (map[SinkLane]LeaseHolder, error) {
	kv, err := q.js.KeyValue(ctx, leasesBucket)
	if err != nil {
		return nil, notReady(err, "bucket "+leasesBucket)
	}
	places, err := q.leased(ctx)
	if err != nil {
		return nil, err
	}
	holders := make(map[SinkLane]LeaseHolder, len(places))
	for place := range places {
		entry, err := kv.Get(ctx, place.leaseKey())
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read lease %s: %w", place.leaseKey(), err)
		}
		var h LeaseHolder
		if json.Unmarshal(entry.Value(), &h) == nil {
			holders[place] = h
		}
	}
	return holders, nil
}

// leased returns what is leased, or was until a TTL ago: the mark that a released lease
// leaves behind lives as long as a lease.
func (q *Queue) leased(ctx context.Context) (map[SinkLane]bool, error) {
	keys, err := q.keys(ctx, leasesBucket, "")
	if err != nil {
		return nil, err
	}
	places := make(map[SinkLane]bool, len(keys))
	for _, key := range keys {
		if place, ok := parseLeaseKey(key); ok {
			places[place] = true
		}
	}
	return places, nil
}
