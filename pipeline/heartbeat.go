package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Kinds of processes that say they are alive. An emitter is part of a process of another program.
const (
	KindIngest    = "ingest"
	KindEmitter   = "emitter"
	KindForwarder = "forwarder"
	KindJanitor   = "janitor"
)

// Kinds returns all of them, in the order of an event's way.
func Kinds() []string { return []string{KindIngest, KindEmitter, KindForwarder, KindJanitor} }

// Heartbeat is what a process says of itself, under <kind>.<id> in the heartbeats bucket,
// for as long as it lives. The bucket's TTL removes the word of one that was killed.
type Heartbeat struct {
	Kind    string    `json:"kind"`
	ID      string    `json:"id"` // unique among the live processes of a kind
	Host    string    `json:"host"`
	PID     int       `json:"pid"`
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	Sinks   []string  `json:"sinks,omitempty"`   // that a forwarder serves
	Lanes   []int     `json:"lanes,omitempty"`   // that a forwarder holds, of any of them
	Problem string    `json:"problem,omitempty"` // why it is not ready, in its own words
	// Database is the identity of the database that it uses, as of Store.Database; empty: none, or
	// not known.
	Database string `json:"database,omitempty"`
}

// NewHeartbeat returns the heartbeat of this process, which starts now.
func NewHeartbeat(kind, id, version string) Heartbeat {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown" // it is for people to read
	}
	return Heartbeat{
		Kind: kind, ID: id, Version: version,
		Host: host, PID: os.Getpid(), Started: time.Now().UTC(),
	}
}

// NewProcessID returns an id that no other process has: host, process id and time.
func NewProcessID() string {
	host, err := os.Hostname()
	if err != nil {
		host = "host"
	}
	clean := []byte(host)
	for j, c := range clean {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' {
			clean[j] = '-'
		}
	}
	return fmt.Sprintf("%s-%d-%s", clean, os.Getpid(), strconv.FormatInt(time.Now().UnixMilli(), 36))
}

// processIDs are the ids that can stand in a key of a bucket.
var processIDs = regexp.MustCompile(`^[-_=A-Za-z0-9]+(\.[-_=A-Za-z0-9]+)*$`)

// ValidateProcessID reports an id that cannot stand in a key of a bucket.
func ValidateProcessID(id string) error {
	if len(id) > 128 || !processIDs.MatchString(id) {
		return fmt.Errorf("process id: %q; want up to 128 letters, digits, dashes, underscores and single dots, such as a host name", id)
	}
	return nil
}

func (h Heartbeat) key() string { return h.Kind + "." + h.ID }

// defaultBeat is the time between heartbeats until the bucket's TTL is known: a third of
// the default.
const defaultBeat = 2 * time.Second

// goodbyeTimeout bounds the removal of a heartbeat, which the TTL does otherwise.
const goodbyeTimeout = 2 * time.Second

// RunHeartbeat says that this process is alive, three times per TTL of the bucket, until
// ctx ends; then it takes its word back. beat is called each time, and its kind and id must
// not change. A NATS that is away is no error: others see this process die, and return.
// The error is one of configuration.
func RunHeartbeat(ctx context.Context, q *Queue, log *slog.Logger, beat func() Heartbeat) error {
	if err := ValidateProcessID(beat().ID); err != nil {
		return err
	}
	return runHeartbeat(ctx, q, log, beat, isolatedAfter)
}

func runHeartbeat(ctx context.Context, q *Queue, log *slog.Logger, beat func() Heartbeat, patience time.Duration) error {
	p := pulse{queue: q, every: defaultBeat}
	failing, doubled := false, false
	var since time.Time // of failing on this connection
	for ctx.Err() == nil {
		err := p.say(ctx, beat())
		if now := p.twin != nil; err == nil && now != doubled {
			doubled = now
			if doubled {
				log.Warn("another live process has the same id", "error", p.twin)
			} else {
				log.Info("no other process has the same id any more")
			}
		}
		switch {
		case err == nil && failing:
			log.Info("heartbeat is stored again")
		case err != nil && !failing && ctx.Err() == nil:
			log.Warn("heartbeat cannot be stored; others take this process for dead", "error", err)
			since = time.Now()
		case err != nil && time.Since(since) > patience:
			q.leaveServer(log)
			since = time.Now()
		}
		failing = err != nil
		pause(ctx, p.every)
	}
	p.goodbye(context.WithoutCancel(ctx), beat().key())
	return nil
}

// isolatedAfter is how long a server may fail to store heartbeats before another one is tried:
// beyond an election, which takes up to 9 s.
const isolatedAfter = 12 * time.Second

// leaveServer connects to another server of the cluster, if there is one: a server that is cut
// off from the others keeps its clients, and can do nothing for them.
func (q *Queue) leaveServer(log *slog.Logger) {
	nc := q.js.Conn()
	if !nc.IsConnected() || len(nc.Servers()) < 2 {
		return
	}
	log.Warn("the NATS server does not answer for JetStream; another one is tried", "server", ConnectedHost(nc))
	_ = nc.ForceReconnect() // fails only when the connection is closed for good
}

// pulse stores heartbeats. It belongs to one goroutine.
type pulse struct {
	queue *Queue
	kv    jetstream.KeyValue // nil until the bucket was found
	every time.Duration

	stored uint64 // revision of what was stored last; 0: nothing was
	twin   error  // another process stores heartbeats under the same key; nil: none does
}

func (p *pulse) say(ctx context.Context, h Heartbeat) error {
	saying, cancel := context.WithTimeout(ctx, p.every)
	defer cancel()
	if p.kv == nil {
		kv, ttl, err := p.queue.bucket(saying, heartbeatsBucket)
		if err != nil {
			return err
		}
		p.kv = kv
		if ttl > 0 {
			p.every = ttl / 3
		}
	}
	if err := p.store(saying, h); err != nil {
		if ctx.Err() == nil { // else it is yet to say goodbye
			p.kv = nil // it may come back with another TTL
		}
		return fmt.Errorf("store heartbeat: %w", err)
	}
	return nil
}

// store stores a heartbeat, and looks whether somebody else has stored one under its key since the one before. That costs
// a request only where it is so.
func (p *pulse) store(ctx context.Context, h Heartbeat) error {
	if p.twin != nil {
		h.Problem = strings.TrimPrefix(h.Problem+"; "+p.twin.Error(), "; ")
	}
	value, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if p.stored > 0 {
		revision, err := p.kv.Update(ctx, h.key(), value, p.stored)
		if err == nil {
			p.stored, p.twin = revision, nil
			return nil
		}
		if !errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
			return err
		}
		if p.twin, err = p.lookForTwin(ctx, h); err != nil {
			return err
		}
	}
	p.stored, err = p.kv.Put(ctx, h.key(), value)
	return err
}

// lookForTwin says who else has stored the newest heartbeat under the key; nobody, where this process has, without
// learning of it, or it has expired.
func (p *pulse) lookForTwin(ctx context.Context, h Heartbeat) (twin, err error) {
	entry, err := p.kv.Get(ctx, h.key())
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var other Heartbeat
	if err := json.Unmarshal(entry.Value(), &other); err != nil || other.Host == h.Host && other.PID == h.PID && other.Started.Equal(h.Started) {
		return nil, nil
	}
	return fmt.Errorf("another live %s has the id %q too, process %d on %s: give one of them another --id (WAYBILL_ID)", h.Kind, h.ID, other.PID, other.Host), nil
}

func (p *pulse) goodbye(ctx context.Context, key string) {
	if p.kv == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, goodbyeTimeout)
	defer cancel()
	_ = p.kv.Delete(ctx, key) // the TTL does it otherwise
}

// bucket returns a bucket and its TTL.
func (q *Queue) bucket(ctx context.Context, name string) (jetstream.KeyValue, time.Duration, error) {
	kv, err := q.js.KeyValue(ctx, name)
	if err != nil {
		return nil, 0, notReady(err, "bucket "+name)
	}
	status, err := kv.Status(ctx)
	if err != nil {
		return nil, 0, notReady(err, "bucket "+name)
	}
	return kv, status.TTL(), nil
}

// keys lists the keys of a bucket below a prefix that ends in a dot or is empty, deleted
// ones included. One request, and unlike a watch it needs no consumer, which a process that may
// not create any could not have.
func (q *Queue) keys(ctx context.Context, bucket, prefix string) ([]string, error) {
	stream, err := q.js.Stream(ctx, "KV_"+bucket)
	if err != nil {
		return nil, notReady(err, "bucket "+bucket)
	}
	root := "$KV." + bucket + "."
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(root+prefix+">"))
	if err != nil {
		return nil, notReady(err, "bucket "+bucket)
	}
	keys := make([]string, 0, len(info.State.Subjects))
	for subject := range info.State.Subjects {
		keys = append(keys, strings.TrimPrefix(subject, root))
	}
	return keys, nil
}

// LiveProcesses returns the newest heartbeat of each live process of a kind, in no
// particular order.
func LiveProcesses(ctx context.Context, q *Queue, kind string) ([]Heartbeat, error) {
	kv, err := q.js.KeyValue(ctx, heartbeatsBucket)
	if err != nil {
		return nil, notReady(err, "bucket "+heartbeatsBucket)
	}
	keys, err := q.keys(ctx, heartbeatsBucket, kind+".")
	if err != nil {
		return nil, err
	}
	var live []Heartbeat
	for _, key := range keys {
		entry, err := kv.Get(ctx, key)
		if errors.Is(err, jetstream.ErrKeyNotFound) { // gone meanwhile, or deleted
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read heartbeat %s: %w", key, err)
		}
		var h Heartbeat
		if err := json.Unmarshal(entry.Value(), &h); err != nil || h.key() != key {
			continue // not written by a Waybill process
		}
		live = append(live, h)
	}
	return live, nil
}
