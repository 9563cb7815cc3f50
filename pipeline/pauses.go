package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Pause is an operator's word that a lane, or all lanes, of a sink are to stand still.
type Pause struct {
	Since  time.Time `json:"since"`            // by the clock of whoever paused it
	Reason string    `json:"reason,omitempty"` // in the operator's words
}

// SinkPauses is what is paused of one sink: the value of the key with the sink's name in the bucket of
// pauses, which has no TTL.
//
// A paused lane is nobody's: its forwarder ends the request in flight, acks it, and gives the lease
// back, and no forwarder takes it. Its consumer stays where it is, and with it its queue, so that
// nothing of it is retransmitted; what JetStream sheds meanwhile comes back out of Postgres as it does
// for a sink that is down. Time goes on: what is past its TTL becomes a dead letter. The word is in
// NATS alone, for forwarders use no Postgres: if JetStream's store is lost, the lanes go on.
type SinkPauses struct {
	All   *Pause        `json:"all,omitempty"`   // of every lane
	Lanes map[int]Pause `json:"lanes,omitempty"` // by lane
}

// Of returns the pause of a lane.
func (s SinkPauses) Of(lane int) (Pause, bool) {
	if s.All != nil {
		return *s.All, true
	}
	p, ok := s.Lanes[lane]
	return p, ok
}

// Empty says that nothing is paused.
func (s SinkPauses) Empty() bool { return s.All == nil && len(s.Lanes) == 0 }

// pause adds lanes, or all of them where none is named. What is paused already stays as it is.
func (s *SinkPauses) pause(lanes []int, p Pause) {
	if len(lanes) == 0 {
		if s.All == nil {
			s.All = &p
		}
		s.Lanes = nil
		return
	}
	if s.All != nil {
		return
	}
	if s.Lanes == nil {
		s.Lanes = map[int]Pause{}
	}
	for _, lane := range lanes {
		if _, already := s.Lanes[lane]; !already {
			s.Lanes[lane] = p
		}
	}
}

// resume takes lanes out, or all of them where none is named.
func (s *SinkPauses) resume(lanes []int) error {
	if len(lanes) == 0 {
		*s = SinkPauses{}
		return nil
	}
	if s.All != nil {
		return errors.New("the sink is paused as a whole, and a lane of it cannot be resumed by itself: resume the sink, and pause the lanes that are to stand still")
	}
	for _, lane := range lanes {
		delete(s.Lanes, lane)
	}
	return nil
}

// PauseLanes pauses lanes of a sink, or all that it has or will have where none is named. It returns
// what is paused now. Forwarders notice within a second or two.
func PauseLanes(ctx context.Context, q *Queue, sink string, lanes []int, reason string) (SinkPauses, error) {
	p := Pause{Since: time.Now().UTC().Truncate(time.Millisecond), Reason: plainText(reason, maxPauseReason)}
	return q.changePauses(ctx, sink, func(s *SinkPauses) error { s.pause(lanes, p); return nil })
}

// ResumeLanes undoes PauseLanes, for the lanes named or, where none is, for all.
func ResumeLanes(ctx context.Context, q *Queue, sink string, lanes []int) (SinkPauses, error) {
	return q.changePauses(ctx, sink, func(s *SinkPauses) error { return s.resume(lanes) })
}

const (
	// maxPauseReason bounds a reason, in bytes.
	maxPauseReason = 200
	// pauseTries is how often a change is tried while others change the same sink.
	pauseTries = 10
)

// changePauses changes what is paused of a sink by compare-and-swap. Running it again after an error
// changes nothing twice.
func (q *Queue) changePauses(ctx context.Context, sink string, change func(*SinkPauses) error) (SinkPauses, error) {
	if !sinkName.MatchString(sink) {
		return SinkPauses{}, fmt.Errorf("sink: %q; a name is a lower-case letter followed by up to 31 letters, digits or underscores", sink)
	}
	kv, err := q.js.KeyValue(ctx, pausesBucket)
	if err != nil {
		return SinkPauses{}, notReady(err, "bucket "+pausesBucket)
	}
	for range pauseTries {
		var now SinkPauses
		entry, err := kv.Get(ctx, sink)
		switch {
		case errors.Is(err, jetstream.ErrKeyNotFound):
		case err != nil:
			return SinkPauses{}, fmt.Errorf("read the pauses of %s: %w", sink, err)
		default:
			// One that cannot be read counts for none: it is overwritten.
			_ = json.Unmarshal(entry.Value(), &now)
		}
		if err := change(&now); err != nil {
			return SinkPauses{}, err
		}
		value, err := json.Marshal(now)
		if err != nil {
			return SinkPauses{}, fmt.Errorf("encode the pauses of %s: %w", sink, err)
		}
		if entry == nil {
			_, err = kv.Create(ctx, sink, value)
		} else {
			_, err = kv.Update(ctx, sink, value, entry.Revision())
		}
		if errors.Is(err, jetstream.ErrKeyExists) || errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
			continue // another operator was faster
		}
		if err != nil {
			return SinkPauses{}, fmt.Errorf("store the pauses of %s; whether they were changed is not known, run it again: %w", sink, err)
		}
		return now, nil
	}
	return SinkPauses{}, fmt.Errorf("store the pauses of %s: others change them all the time; run it again", sink)
}

// PausesOf returns what is paused of the named sinks or, where none is named, of all, by sink, but for
// those that nothing is paused of. Without the bucket, which an older version did not make, nothing is.
func PausesOf(ctx context.Context, q *Queue, sinks []string) (map[string]SinkPauses, error) {
	kv, err := q.js.KeyValue(ctx, pausesBucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, notReady(err, "bucket "+pausesBucket)
	}
	if len(sinks) == 0 {
		if sinks, err = q.keys(ctx, pausesBucket, ""); err != nil {
			return nil, err
		}
	}
	var out map[string]SinkPauses
	for _, sink := range sinks {
		entry, err := kv.Get(ctx, sink)
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the pauses of %s: %w", sink, err)
		}
		var s SinkPauses
		if err := json.Unmarshal(entry.Value(), &s); err != nil {
			return nil, fmt.Errorf("the pauses of %s cannot be read, `waybill lanes resume --sink %s` clears them: %w", sink, sink, err)
		}
		if s.Empty() {
			continue
		}
		if out == nil {
			out = map[string]SinkPauses{}
		}
		out[sink] = s
	}
	return out, nil
}

// paused keeps what a forwarder last saw paused. It is safe for concurrent use.
type paused struct {
	mu    sync.Mutex // guards what follows
	sinks map[string]SinkPauses
}

func (p *paused) set(sinks map[string]SinkPauses) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sinks = sinks
}

// has reports whether a lane of a sink is paused.
func (p *paused) has(place SinkLane) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, is := p.sinks[place.Sink].Of(place.Lane)
	return is
}

// all returns what is paused, by sink.
func (p *paused) all() map[string]SinkPauses {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.sinks)
}

// problems says of each sink what is paused of it, since when, why and how that ends.
func (p *paused) problems() (all []error) {
	sinks := p.all()
	for _, sink := range slices.Sorted(maps.Keys(sinks)) {
		s := sinks[sink]
		if s.All != nil {
			all = append(all, fmt.Errorf("sink %s is paused since %s%s; `waybill lanes resume --sink %s` ends that",
				sink, s.All.Since.Format(time.RFC3339), because(s.All.Reason), sink))
			continue
		}
		for _, lane := range slices.Sorted(maps.Keys(s.Lanes)) {
			all = append(all, fmt.Errorf("%v is paused since %s%s; `waybill lanes resume --sink %s --lane %d` ends that",
				SinkLane{sink, lane}, s.Lanes[lane].Since.Format(time.RFC3339), because(s.Lanes[lane].Reason), sink, lane))
		}
	}
	return all
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return " (" + reason + ")"
}
