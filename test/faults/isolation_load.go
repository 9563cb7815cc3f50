package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"

	"github.com/waybillhq/waybill/internal/producer"
)

const (
	// callEvents is how many events a call has; the keys are isolationSources × isolationTypes.
	callEvents       = 100
	isolationSources = 20
	isolationTypes   = 10
	// Bytes of data: each power of two between is as frequent as the next.
	isolationMinBytes, isolationMaxBytes = 256, 1024
	// mostCalls bounds the calls in flight of a load of a fixed rate: far above what is in
	// flight as long as ingest keeps up.
	mostCalls = 1024
	// peakCallers is how many calls are in flight at the highest rate.
	peakCallers = 32
	// callPatience is how long a call is made again.
	callPatience = time.Minute
)

// isolationCall is one call and what became of it. Its number is its index, and events are named by
// it: <number>-<index in the call>.
type isolationCall struct {
	due, answered time.Time
	accepted      bool
}

// load makes calls, each event of a key to one ingest.
type load struct {
	ingests []*producer.GRPC
	noise   []byte

	mu    sync.Mutex // guards what follows
	calls []isolationCall
	err   error // the first call that was not accepted
}

func newLoad(addrs []string) (*load, error) {
	l := &load{noise: make([]byte, 1<<20)}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range l.noise {
		l.noise[i] = "abcdefghijklmnopqrstuvwxyz0123456789"[r.IntN(36)]
	}
	for _, addr := range addrs {
		ingest, err := producer.NewGRPC(addr, false, false)
		if err != nil {
			return nil, errors.Join(err, l.close())
		}
		l.ingests = append(l.ingests, ingest)
	}
	return l, nil
}

func (l *load) close() error {
	var errs []error
	for _, ingest := range l.ingests {
		errs = append(errs, ingest.Close())
	}
	return errors.Join(errs...)
}

// begin gives a call its number.
func (l *load) begin(due time.Time) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls = append(l.calls, isolationCall{due: due})
	return len(l.calls) - 1
}

// made is how many calls there are.
func (l *load) made() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.calls)
}

// send makes a call.
func (l *load) send(ctx context.Context, number int) {
	to := number % len(l.ingests)
	r := rand.New(rand.NewPCG(3, uint64(number)))
	events := make([]*pb.CloudEvent, callEvents)
	for i := range events {
		events[i] = l.event(r, number, i, to)
	}
	var err error
	for _, outcome := range producer.SendUntil(ctx, l.ingests[to], events, callPatience, nil) {
		err = errors.Join(err, outcome.Err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	call := &l.calls[number]
	call.answered, call.accepted = time.Now(), err == nil
	if err != nil && l.err == nil {
		l.err = fmt.Errorf("call %d was not accepted: %w", number, err)
	}
}

func (l *load) event(r *rand.Rand, number, index, to int) *pb.CloudEvent {
	source := r.IntN(isolationSources/len(l.ingests))*len(l.ingests) + to
	size := isolationMinBytes << r.IntN(2)
	size += r.IntN(min(size, isolationMaxBytes-size) + 1)
	from := r.IntN(len(l.noise) - size)
	return &pb.CloudEvent{
		Id: strconv.Itoa(number) + "-" + strconv.Itoa(index), SpecVersion: "1.0",
		Source: "/isolation/" + strconv.Itoa(source), Type: "isolation.type" + strconv.Itoa(r.IntN(isolationTypes)),
		Data: &pb.CloudEvent_TextData{TextData: string(l.noise[from : from+size])},
	}
}

// parseEventID undoes the naming of events.
func parseEventID(id string) (call, index int, err error) {
	number, rest, _ := strings.Cut(id, "-")
	call, err = strconv.Atoi(number)
	if err == nil {
		index, err = strconv.Atoi(rest)
	}
	if err != nil || call < 0 || index < 0 || index >= callEvents {
		return 0, 0, fmt.Errorf("event id %q is none of the load", id)
	}
	return call, index, nil
}

// steady makes calls at a fixed rate until stop is closed, and returns when all are answered.
// It is an open loop: a call is due at its time, however long earlier ones take.
func (l *load) steady(ctx context.Context, rate float64, stop <-chan struct{}) {
	pause := time.Duration(float64(time.Second) * callEvents / rate)
	slots := make(chan struct{}, mostCalls)
	var wg sync.WaitGroup
	defer wg.Wait()
	for due := time.Now(); ; due = due.Add(pause) {
		timer := time.NewTimer(time.Until(due))
		select {
		case <-timer.C:
		case <-stop:
			timer.Stop()
			return
		case <-ctx.Done():
			timer.Stop()
			return
		}
		number := l.begin(due)
		slots <- struct{}{}
		wg.Go(func() {
			l.send(ctx, number)
			<-slots
		})
	}
}

// most makes as many calls as ingest takes, until stop is closed.
func (l *load) most(ctx context.Context, stop <-chan struct{}) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for range peakCallers {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-ctx.Done():
					return
				default:
					l.send(ctx, l.begin(time.Now()))
				}
			}
		})
	}
}
