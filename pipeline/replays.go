package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	// replaysBucket is none of the live path's: no process looks at it.
	replaysBucket = "waybill_replays"
	// replaysTTL is how long the state of a replay is kept after its last change.
	replaysTTL = 30 * 24 * time.Hour
)

// ReplayStates keeps how far replays have come, by their names, for 30 days after the last change.
type ReplayStates struct {
	kv jetstream.KeyValue
}

// ErrReplayTaken means that another process changes the state of the same replay.
var ErrReplayTaken = errors.New("another process runs this replay")

// ReplayStates opens the states, and makes their bucket, with as many replicas as EVENTS has, if
// there is none.
func (q *Queue) ReplayStates(ctx context.Context) (*ReplayStates, error) {
	kv, err := q.js.KeyValue(ctx, replaysBucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		stream, err := q.js.Stream(ctx, EventsStream)
		if err != nil {
			return nil, notReady(err, "stream "+EventsStream)
		}
		kv, err = q.js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
			Bucket: replaysBucket, Description: "How far each `waybill replay` has come", TTL: replaysTTL,
			Storage: jetstream.FileStorage, Replicas: stream.CachedInfo().Config.Replicas,
		})
		if errors.Is(err, jetstream.ErrBucketExists) {
			return q.ReplayStates(ctx) // another replay made it meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("create bucket %s: %w", replaysBucket, err)
		}
		return &ReplayStates{kv}, nil
	}
	if err != nil {
		return nil, notReady(err, "bucket "+replaysBucket)
	}
	return &ReplayStates{kv}, nil
}

// Load returns a state and its revision; nil and 0 if there is none. A name consists of letters,
// digits, - and _.
func (s *ReplayStates) Load(ctx context.Context, name string) (state []byte, revision uint64, err error) {
	entry, err := s.kv.Get(ctx, name)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, fmt.Errorf("read the state of replay %s: %w", name, err)
	}
	return entry.Value(), entry.Revision(), nil
}

// Save stores a state in place of the revision that Load or the last Save returned, and returns the
// new one. ErrReplayTaken: somebody else has stored one meanwhile.
func (s *ReplayStates) Save(ctx context.Context, name string, state []byte, revision uint64) (uint64, error) {
	next, err := s.kv.Update(ctx, name, state, revision)
	var api *jetstream.APIError
	if errors.As(err, &api) && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant) {
		return 0, fmt.Errorf("%w: %s", ErrReplayTaken, name)
	}
	if err != nil {
		return 0, fmt.Errorf("store the state of replay %s: %w", name, err)
	}
	return next, nil
}
