package bench

import (
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// chunkEvents is how many events share one allocation of the ledger.
	chunkEvents = 1 << 16
	// tickLength is the unit of the ledger's times: 32 bits of it are eleven hours.
	tickLength = 10 * time.Microsecond
	// maxFaults bounds the faults that are told in words.
	maxFaults = 10

	runIDBytes   = 8
	eventIDBytes = runIDBytes + 12
)

// tick is a time since the ledger was begun, in units of tickLength, plus 1; 0: never.
type tick uint32

// What is known of an event beside its times.
const (
	isRefused  = 1 << iota // by ingest, for good or for now: nothing was stored
	isUnknown              // the call came to no answer: it may be stored
	isArchived             // the archive has it
	isPending              // it waits in Postgres for the sink that is judged
	isDead                 // it is a dead letter of the sink that is judged
	isReplayed             // it was read back
)

// chunk is what is known of some events, 16 bytes each.
type chunk struct {
	due, accepted, arrived, marks [chunkEvents]atomic.Uint32
}

// ledger knows each event by its number. It is safe for concurrent use.
type ledger struct {
	run   string // first part of each id, runIDBytes long
	began time.Time

	reserved       atomic.Int64 // events
	accepted       atomic.Int64
	failed         atomic.Int64 // refused or unknown
	arrived        atomic.Int64 // events that came to the endpoint for the first time
	last           atomic.Int64 // tick of the newest of these
	doubled        atomic.Int64 // arrivals beyond the first of an event
	doubledArchive atomic.Int64 // the same, of the archive
	misjudged      atomic.Int64 // events that ingest accepted or refused wrongly
	foreign        atomic.Int64 // arrivals that are not of this run

	chunks atomic.Pointer[[]*chunk]
	mu     sync.Mutex // of what follows, and of growing chunks
	faults []string
}

func newLedger(now time.Time) *ledger {
	l := &ledger{run: fmt.Sprintf("%08x", uint32(now.UnixMicro())), began: now}
	l.chunks.Store(new([]*chunk))
	return l
}

func (l *ledger) now() tick { return l.tickOf(time.Now()) }

func (l *ledger) tickOf(at time.Time) tick { return tick(at.Sub(l.began)/tickLength) + 1 }

// reserve gives n events their numbers, and returns the first.
func (l *ledger) reserve(n int, due time.Time) int64 {
	past := l.reserved.Add(int64(n))
	for int64(len(*l.chunks.Load()))*chunkEvents < past {
		l.grow(past)
	}
	first := past - int64(n)
	at := uint32(l.tickOf(due))
	for i := first; i < past; i++ {
		c, slot := l.at(i)
		c.due[slot].Store(at)
	}
	return first
}

func (l *ledger) grow(past int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	have := *l.chunks.Load()
	grown := append([]*chunk(nil), have...)
	for int64(len(grown))*chunkEvents < past {
		grown = append(grown, new(chunk))
	}
	l.chunks.Store(&grown)
}

func (l *ledger) at(event int64) (c *chunk, slot int64) {
	return (*l.chunks.Load())[event/chunkEvents], event % chunkEvents
}

// settle notes the answer to a call: marks is 0 for accepted, else isRefused or isUnknown.
func (l *ledger) settle(event int64, at tick, marks uint32) {
	c, slot := l.at(event)
	if marks != 0 {
		c.marks[slot].Or(marks)
		l.failed.Add(1)
		return
	}
	c.accepted[slot].Store(uint32(at))
	l.accepted.Add(1)
}

// settleAll is settle for n events that were all accepted.
func (l *ledger) settleAll(first int64, n int, at tick) {
	for i := first; i < first+int64(n); i++ {
		c, slot := l.at(i)
		c.accepted[slot].Store(uint32(at))
	}
	l.accepted.Add(int64(n))
}

// arrive notes that the endpoint took the event with this id.
func (l *ledger) arrive(id []byte, at tick) {
	event, ok := l.parseID(id)
	if !ok {
		l.foreign.Add(1)
		return
	}
	c, slot := l.at(event)
	if !c.arrived[slot].CompareAndSwap(0, uint32(at)) {
		l.doubled.Add(1)
		l.fault("ingress took event %s twice", id)
		return
	}
	l.arrived.Add(1)
	l.last.Store(int64(at))
}

// misjudge counts the events of a call whose verdict is not what it must be; both lists are
// in order.
func (l *ledger) misjudge(refused, bad []int) {
	wrong := 0
	for _, i := range refused {
		if _, ok := slices.BinarySearch(bad, i); !ok {
			wrong++
		}
	}
	for _, i := range bad {
		if _, ok := slices.BinarySearch(refused, i); !ok {
			wrong++
		}
	}
	l.misjudged.Add(int64(wrong))
	l.fault("ingress: of one call the events %v were refused; the invalid ones are %v", refused, bad)
}

func (l *ledger) fault(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.faults) < maxFaults {
		l.faults = append(l.faults, fmt.Sprintf(format, args...))
	}
}

// parseID returns the number of an event of this run.
func (l *ledger) parseID(id []byte) (event int64, ok bool) {
	if len(id) != eventIDBytes || string(id[:runIDBytes]) != l.run {
		return 0, false
	}
	event, err := strconv.ParseInt(string(id[runIDBytes:]), 16, 64)
	return event, err == nil && event >= 0 && event < l.reserved.Load()
}

// writeID writes the id of an event, eventIDBytes long.
func (l *ledger) writeID(dst []byte, event int64) {
	const digits = "0123456789abcdef"
	copy(dst, l.run)
	for i := eventIDBytes - 1; i >= runIDBytes; i-- {
		dst[i] = digits[event&15]
		event >>= 4
	}
}

// idOf is writeID for people.
func (l *ledger) idOf(event int64) string {
	id := make([]byte, eventIDBytes)
	l.writeID(id, event)
	return string(id)
}

// each visits the events from first up to past.
func (l *ledger) each(first, past int64, visit func(event int64, due, accepted, arrived tick, marks uint32)) {
	for i := first; i < past; i++ {
		c, slot := l.at(i)
		visit(i, tick(c.due[slot].Load()), tick(c.accepted[slot].Load()), tick(c.arrived[slot].Load()), c.marks[slot].Load())
	}
}

// times are when an event was due, accepted and first came to the endpoint; 0: never.
type times struct{ due, accepted, arrived tick }

func (l *ledger) timesOf(event int64) times {
	c, slot := l.at(event)
	return times{tick(c.due[slot].Load()), tick(c.accepted[slot].Load()), tick(c.arrived[slot].Load())}
}

// mark adds to what is known of an event and reports whether all of it was known before.
func (l *ledger) mark(event int64, marks uint32) (before bool) {
	c, slot := l.at(event)
	return c.marks[slot].Or(marks)&marks == marks
}

// unmark forgets marks of all events.
func (l *ledger) unmark(marks uint32) {
	for i := range l.reserved.Load() {
		c, slot := l.at(i)
		c.marks[slot].And(^marks)
	}
}
