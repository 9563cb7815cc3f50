package pipeline

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// ErrNoJanitor means that nobody settles, retransmits or expires what is accepted.
var ErrNoJanitor = errors.New("no janitor is alive")

// QueueWatch looks at the parts that whoever appends needs beside Postgres, and without which he does
// his own: NATS, the streams and a janitor.
type QueueWatch struct {
	queue         *Queue
	lanes         int
	maxEventBytes int
	database      string // its identity; empty: not known

	mu      sync.Mutex // guards what follows
	queueIs error
	janitor error
}

// NewQueueWatch returns a watch for a process that appends events of up to maxEventBytes to
// store and publishes them to queue.
func NewQueueWatch(store *Store, queue *Queue, maxEventBytes int) *QueueWatch {
	return &QueueWatch{queue: queue, lanes: store.Lanes(), maxEventBytes: maxEventBytes, database: store.Database()}
}

// watchEvery is the pause between looks; a third of the time after which a janitor counts
// as dead.
const watchEvery = 2 * time.Second

// janitorPatience is how long after its own start a process does not miss a janitor: what is started together
// would complain of what is a second behind.
const janitorPatience = 3 * watchEvery

// Run looks until ctx ends. A queue that does not fit when it is first seen is an error, for
// events would be accepted that can never be published. One that no longer fits after a
// reconnect, such as a server restored with another max_payload, is a problem to be shown:
// what is accepted waits in Postgres.
func (w *QueueWatch) Run(ctx context.Context) error {
	seen, checked, began := false, uint64(0), time.Now()
	for ctx.Err() == nil {
		if reconnects := w.queue.js.Conn().Stats().Reconnects; !seen || reconnects != checked || w.QueueProblem() != nil {
			err := w.queue.Check(ctx, w.lanes, w.maxEventBytes)
			if err != nil && !errors.Is(err, ErrNotReady) && !seen && ctx.Err() == nil {
				return err
			}
			if err == nil {
				seen, checked = true, reconnects
			}
			w.set(&w.queueIs, err)
		}
		err := w.lookForJanitor(ctx)
		if errors.Is(err, ErrNoJanitor) && time.Since(began) < janitorPatience {
			err = nil // it may be starting as well
		}
		w.set(&w.janitor, err)
		pause(ctx, watchEvery)
	}
	return nil
}

func (w *QueueWatch) lookForJanitor(ctx context.Context) error {
	alive, err := LiveProcesses(ctx, w.queue, KindJanitor)
	if err != nil {
		return fmt.Errorf("cannot tell whether a janitor is alive: %w", err)
	}
	const means = "events are accepted and delivered, but not settled, and nothing is retransmitted"
	var strangers []string
	for _, h := range alive {
		if h.Database == "" || w.database == "" || h.Database == w.database {
			return nil
		}
		strangers = append(strangers, h.ID)
	}
	if len(strangers) > 0 {
		return fmt.Errorf("%w on this database: %s; %s is of another one: give this process and the janitor the same database, or start a janitor on this one",
			ErrNoJanitor, means, strings.Join(strangers, ", "))
	}
	return fmt.Errorf("%w: %s; start one", ErrNoJanitor, means)
}

func (w *QueueWatch) set(field *error, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	*field = err
}

// QueueProblem says what is wrong with the streams and buckets, or is nil.
func (w *QueueWatch) QueueProblem() error { w.mu.Lock(); defer w.mu.Unlock(); return w.queueIs }

// JanitorProblem is ErrNoJanitor while none is alive on the store's database, or says why that
// cannot be told, or is nil.
func (w *QueueWatch) JanitorProblem() error { w.mu.Lock(); defer w.mu.Unlock(); return w.janitor }

// Connected says why the queue has no connection to NATS, or is nil.
func (q *Queue) Connected() error {
	nc := q.js.Conn()
	if nc.IsConnected() {
		return nil
	}
	servers := serversOf(nc)
	if err := nc.LastError(); err != nil {
		return fmt.Errorf("not connected to %s: %w", servers, err)
	}
	return fmt.Errorf("not connected to %s", servers)
}

// serversOf are host and port of the servers that a connection knows: their URLs may have a password in them.
func serversOf(nc *nats.Conn) string {
	var hosts []string
	for _, server := range nc.Servers() {
		if u, err := url.Parse(server); err == nil {
			hosts = append(hosts, u.Host)
		}
	}
	return strings.Join(hosts, ", ")
}
