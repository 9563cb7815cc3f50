package pipeline

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/waybillhq/waybill/test/faults/proxy"
)

// Of the process that emits until it is killed: the addresses, and what its ids begin with.
const (
	childDatabaseEnv = "WAYBILL_TEST_EMITTER_DATABASE"
	childNATSEnv     = "WAYBILL_TEST_EMITTER_NATS"
	childNameEnv     = "WAYBILL_TEST_EMITTER_NAME"
)

// childCallers emit at once in a process that is to be killed.
const childCallers = 16

// emitUntilKilled is the program of such a process. Each of its callers has a source of its own;
// after each event that was answered with nil it writes the event's source and id.
func emitUntilKilled() error {
	cfg := DefaultEmitterConfig(os.Getenv(childDatabaseEnv), os.Getenv(childNATSEnv))
	e, err := NewEmitter(cfg)
	if err != nil {
		return err
	}
	stopped := make(chan error, 1)
	go func() { stopped <- e.Run(context.Background()) }()
	if err := e.WaitReady(context.Background()); err != nil {
		return err
	}
	var wg sync.WaitGroup
	for c := range childCallers {
		wg.Go(func() {
			source := fmt.Sprintf("/%s/%d", os.Getenv(childNameEnv), c)
			for i := 0; ; i++ {
				id := fmt.Sprintf("%06d", i)
				if err := e.Emit(context.Background(), emitted(source, id)); err != nil {
					fmt.Fprintln(os.Stderr, err)
					return
				}
				_, _ = os.Stdout.WriteString(source + " " + id + "\n") // one write, which a kill does not divide
			}
		})
	}
	wg.Wait()
	return <-stopped
}

// Emitters that are killed at any moment, several at once, leave what they said was stored, once
// each and in order, and others go on.
func TestEmitterIsKilled(t *testing.T) {
	r := mustRig(t)
	r.mustJanitor(t, nil)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const rounds, children, each = 3, 2, 150
	said := make([]map[string][]string, rounds*children) // of each child: the ids by source
	for round := range rounds {
		var wg sync.WaitGroup
		for child := range children {
			n := round*children + child
			said[n] = map[string][]string{}
			wg.Go(func() {
				cmd := exec.CommandContext(t.Context(), self)
				cmd.Env = append(os.Environ(), childDatabaseEnv+"="+r.url, childNATSEnv+"="+r.nats.URL(), fmt.Sprintf("%s=child-%d", childNameEnv, n))
				cmd.Stderr = t.Output()
				out, err := cmd.StdoutPipe()
				if err != nil {
					t.Error(err)
					return
				}
				if err := cmd.Start(); err != nil {
					t.Error(err)
					return
				}
				lines := bufio.NewScanner(out)
				for i := 0; lines.Scan(); i++ {
					source, id, ok := strings.Cut(lines.Text(), " ")
					if !ok {
						continue // what the kill cut off
					}
					said[n][source] = append(said[n][source], id)
					if i == each+37*n {
						_ = cmd.Process.Kill()
					}
				}
				if err := cmd.Wait(); err == nil {
					t.Error("the process ended by itself")
				}
			})
		}
		wg.Wait()
	}
	events := 0
	for _, bySource := range said {
		for source, ids := range bySource {
			events += len(ids)
			stored := r.stored(t, source)
			// One more may be stored than was said: that of the commit before the kill.
			if len(stored) > len(ids)+1 || len(stored) < len(ids) || !slices.Equal(stored[:len(ids)], ids) {
				t.Errorf("of %s %d events were said to be stored, and %d are, or in another order", source, len(ids), len(stored))
			}
		}
	}
	if events < rounds*children*each {
		t.Errorf("%d events were said to be stored: the test tries nothing", events)
	}
	assertDense(t, r.store)
	e, _ := r.mustEmitter(t, nil)
	if err := e.Emit(t.Context(), emitted("/child-0/0", "after")); err != nil {
		t.Fatal(err)
	}
}

// An emitter whose Postgres and NATS have ceased to answer stops in the time that is given to it, and whoever emits has an
// answer.
func TestEmitterStopsWhileNobodyAnswers(t *testing.T) {
	t.Parallel()
	r := mustRig(t)
	toDatabase, database := mustProxy(t, r.url, nil)
	toQueue, queue := mustProxy(t, r.nats.URL(), nil)
	const limit = 2 * time.Second
	e := r.mustNewEmitter(t, func(c *EmitterConfig) {
		c.Store.URL, c.NATSURL = database, queue
		c.Store.LockTimeout, c.Ingester.FlushTimeout, c.Ingester.StopTimeout, c.Ingester.Outbox.Take = limit, limit, limit, true
	})
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	mustBeReady(t, e)
	if err := e.Emit(t.Context(), emitted("/s", "0")); err != nil {
		t.Fatal(err)
	}
	toDatabase.Set(proxy.Fault{Mode: proxy.BlackHole})
	toQueue.Set(proxy.Fault{Mode: proxy.BlackHole})
	const callers = 20
	answers := make(chan error, 2*callers)
	for i := range callers {
		go func() { answers <- e.Emit(context.Background(), emitted(fmt.Sprint("/s/", i), "1")) }()
		e.EmitAsync(t.Context(), emitted(fmt.Sprint("/s/", i), "2"), func(err error) { answers <- err })
	}
	stop()
	began := time.Now()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	// Its connections have closeTimeout besides.
	if took := time.Since(began); took > 3*limit+2*closeTimeout {
		t.Errorf("the stop took %v; the transaction under way, the stop and the done functions have %v each", took, limit)
	}
	for range 2 * callers {
		if err := <-answers; !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrOutcomeUnknown) {
			t.Errorf("answered %v", err)
		}
	}
}
