package bench

import (
	"strings"
	"testing"
	"time"
)

// mustAccept reserves n events that are all accepted, and returns the first.
func mustAccept(t *testing.T, l *ledger, n int) int64 {
	t.Helper()
	first := l.reserve(n, l.began)
	l.settleAll(first, n, l.now())
	return first
}

// deliver lets both sinks have events.
func deliver(l *ledger, first int64, n int) {
	for i := first; i < first+int64(n); i++ {
		l.arrive([]byte(l.idOf(i)), l.now())
		l.mark(i, isArchived)
	}
}

func TestVerdictOfWhatIsDelivered(t *testing.T) {
	l := newLedger(time.Now())
	deliver(l, mustAccept(t, l, 10), 10)
	for _, sink := range []string{ingressSink, archiveSink} {
		if v := l.judge("s", sink); !v.OK() || v.Accepted != 10 || v.Delivered != 10 {
			t.Errorf("%v", v)
		}
	}
}

func TestVerdictSeesALostEvent(t *testing.T) {
	l := newLedger(time.Now())
	first := mustAccept(t, l, 10)
	deliver(l, first, 4)
	deliver(l, first+5, 5)
	for _, sink := range []string{ingressSink, archiveSink} {
		v := l.judge("s", sink)
		if v.OK() || v.Lost != 1 || v.Delivered != 9 {
			t.Errorf("%v", v)
		}
		if text := v.String(); !strings.Contains(text, "NOT OK") || !strings.Contains(text, l.idOf(first+4)) {
			t.Errorf("%s", text)
		}
	}
}

func TestVerdictSeesADoubledEvent(t *testing.T) {
	l := newLedger(time.Now())
	first := mustAccept(t, l, 10)
	deliver(l, first, 10)
	l.arrive([]byte(l.idOf(first+3)), l.now())
	if v := l.judge("s", ingressSink); v.OK() || v.Doubled != 1 || v.Lost != 0 || v.Delivered != 10 {
		t.Errorf("%v", v)
	}
	if v := l.judge("s", archiveSink); !v.OK() {
		t.Errorf("%v", v)
	}
}

// TestRetransmitsExplainDoubles: those of the endpoint, and no more than there were.
func TestRetransmitsExplainDoubles(t *testing.T) {
	for _, test := range []struct {
		sink                 string
		doubled, retransmits int64
		ok                   bool
	}{{ingressSink, 3, 3, true}, {ingressSink, 4, 3, false}, {archiveSink, 1, 3, false}} {
		if v := (Verdict{Sink: test.sink, Doubled: test.doubled, Retransmits: test.retransmits}); v.OK() != test.ok {
			t.Errorf("%v", v)
		}
	}
}

func TestVerdictOfWhatWaitsOrWasGivenUp(t *testing.T) {
	l := newLedger(time.Now())
	first := mustAccept(t, l, 3)
	deliver(l, first, 1)
	l.mark(first+1, isPending)
	l.mark(first+2, isDead)
	v := l.judge("s", ingressSink)
	if !v.OK() || v.Delivered != 1 || v.Pending != 1 || v.DeadLetters != 1 {
		t.Errorf("%v", v)
	}
	l.unmark(isPending | isDead)
	if v := l.judge("s", ingressSink); v.Lost != 2 {
		t.Errorf("%v", v)
	}
}

// TestVerdictOfWhatWasNotAccepted: events without an answer may be delivered, refused ones
// may not.
func TestVerdictOfWhatWasNotAccepted(t *testing.T) {
	l := newLedger(time.Now())
	first := l.reserve(4, l.began)
	l.settle(first, l.now(), isUnknown)
	l.settle(first+1, l.now(), isUnknown)
	l.settle(first+2, l.now(), isRefused)
	l.settle(first+3, l.now(), 0)
	deliver(l, first+1, 1)
	deliver(l, first+3, 1)
	v := l.judge("s", ingressSink)
	if !v.OK() || v.Unknown != 2 || v.Stored != 1 || v.Refused != 1 || v.Accepted != 1 {
		t.Errorf("%v", v)
	}
	deliver(l, first+2, 1)
	if v := l.judge("s", ingressSink); v.OK() || v.Surprising != 1 {
		t.Errorf("%v", v)
	}
}

func TestLedgerGrows(t *testing.T) {
	l := newLedger(time.Now())
	mustAccept(t, l, chunkEvents-1)
	first := mustAccept(t, l, chunkEvents+7)
	last := first + chunkEvents + 6
	if event, ok := l.parseID([]byte(l.idOf(last))); !ok || event != last {
		t.Errorf("event %d, %v; want %d", event, ok, last)
	}
	l.arrive([]byte(l.idOf(last+1)), l.now())
	l.arrive([]byte("something"), l.now())
	if l.foreign.Load() != 2 || l.arrived.Load() != 0 {
		t.Errorf("%d foreign events, %d arrived; want 2 and 0", l.foreign.Load(), l.arrived.Load())
	}
}
