package bench

import (
	"context"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/proto"
)

func mustParseTrace(t *testing.T, text string) *trace {
	t.Helper()
	parsed, err := parseTrace("t.csv", strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func TestParseTrace(t *testing.T) {
	for name, text := range map[string]string{
		"seconds": "time,key,size\n100.5,a,10\n100.5,\"b,c\",0\n102,a,300\n",
		"times":   "time,key,size\n2026-11-30T12:00:00.5Z,a,10\n2026-11-30T13:00:00.5+01:00,\"b,c\",0\r\n2026-11-30T12:00:02Z,a,300",
	} {
		got := mustParseTrace(t, text)
		want := []arrival{{0, 0, 10}, {0, 1, 0}, {1500 * time.Millisecond, 0, 300}}
		if len(got.rows) != 3 || got.rows[0] != want[0] || got.rows[1] != want[1] || got.rows[2] != want[2] || got.keys != 2 {
			t.Errorf("%s: %+v, %d keys; want %+v", name, got.rows, got.keys, want)
		}
		if mean := got.meanSize(); math.Abs(mean-310.0/3) > 1e-9 || got.length() != 1500*time.Millisecond {
			t.Errorf("%s: mean %v, length %v", name, mean, got.length())
		}
	}
}

// TestParseTraceSaysWhatIsWrong: where, and what would be right.
func TestParseTraceSaysWhatIsWrong(t *testing.T) {
	const head = "time,key,size\n0,a,1\n"
	for _, test := range []struct{ text, where, remedy string }{
		{"", "t.csv: line 1:", "want the header time,key,size"},
		{"0,a,1\n", "t.csv: line 1, column 1:", "want time,key,size"},
		{"time,key,size\n", "t.csv: line 2:", "want one an event"},
		{head + "1,a\n", "t.csv: line 3, column 3:", "want 3: time,key,size"},
		{head + "1,a,1,2\n", "t.csv: line 3, column 5:", "double quotes"},
		{head + "soon,a,1\n", "t.csv: line 3, column 1: time:", "such as 12.345"},
		{head + "NaN,a,1\n", "t.csv: line 3, column 1: time:", "want seconds"},
		{head + "1e9,a,1\n", "t.csv: line 3, column 1: time:", "within 10h"},
		{head + "2026-11-30T12:00:00Z,a,1\n", "t.csv: line 3, column 1: time:", "the same form in all rows"},
		{"time,key,size\n2026-11-30T12:00:00Z,a,1\n5,a,1\n", "t.csv: line 3, column 1: time:", "the same form in all rows"},
		{head + "2,a,1\n1.5,a,1\n", "t.csv: line 4, column 1: time:", "sort the rows by time"},
		{head + "1,,1\n", "t.csv: line 3, column 3: key:", "give every event a key"},
		{head + "1,a,12k\n", "t.csv: line 3, column 5: size:", "want bytes of data, such as 512"},
		{head + "1,a,-1\n", "t.csv: line 3, column 5: size:", "want 0 to"},
		{head + "1,a,99999999\n", "t.csv: line 3, column 5: size:", "want 0 to"},
		{head + "1,\"a,1\n", "t.csv: parse error on line 3, column 8:", "put quotes around the whole key"},
	} {
		_, err := parseTrace("t.csv", strings.NewReader(test.text))
		if err == nil || !strings.HasPrefix(err.Error(), test.where) || !strings.Contains(err.Error(), test.remedy) {
			t.Errorf("%q: %v; want %s … %s", test.text, err, test.where, test.remedy)
		}
	}
	if _, err := readTrace(t.TempDir() + "/none.csv"); err == nil || !strings.HasPrefix(err.Error(), "--trace: ") {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestSampleTrace(t *testing.T) {
	sample, err := readTrace("")
	if err != nil {
		t.Fatal(err)
	}
	if seconds := sample.length().Seconds(); seconds < 15 || seconds > 25 || len(sample.rows) < 1000 || sample.keys < 10 {
		t.Errorf("%v s, %d rows, %d keys", seconds, len(sample.rows), sample.keys)
	}
	if peak, mean := float64(sample.peak(1)), float64(len(sample.rows))/sample.length().Seconds(); peak < 3*mean {
		t.Errorf("a peak of %v/s, at %v/s on average; want bursts", peak, mean)
	}
}

func TestTracePeak(t *testing.T) {
	parsed := mustParseTrace(t, "time,key,size\n0,a,1\n0.6,a,1\n0.99,a,1\n1,a,1\n1.7,a,1\n5,a,1\n")
	for speed, want := range map[float64]int{1: 3, 0.25: 2, 2: 5, 100: 6} {
		if got := parsed.peak(speed); got != want {
			t.Errorf("%v times as fast: %d in a second; want %d", speed, got, want)
		}
	}
}

// TestTraceCalls: events of the sizes and keys of the rows, with ids of the ledger.
func TestTraceCalls(t *testing.T) {
	parsed := mustParseTrace(t, "time,key,size\n0,a,10\n1,b,0\n2,a,70000\n")
	l := newLedger(time.Now())
	calls, err := newTraceCalls(parsed, l.run)
	if err != nil {
		t.Fatal(err)
	}
	var events [3]pb.CloudEvent
	first := l.reserve(3, l.began)
	for i := range events {
		m := calls.message(int64(i))
		wire := make([]byte, len(m.wire))
		m.fill(wire, l, first+int64(i))
		if err := proto.Unmarshal(wire, &events[i]); err != nil {
			t.Fatal(err)
		}
		if e := &events[i]; e.GetId() != l.idOf(int64(i)) || len(e.GetTextData()) != int(parsed.rows[i].size) || e.GetSpecVersion() != "1.0" {
			t.Errorf("event %d: id %s, %d bytes, version %s", i, e.GetId(), len(e.GetTextData()), e.GetSpecVersion())
		}
	}
	key := func(i int) string { return events[i].GetSource() + " " + events[i].GetType() }
	if key(0) != key(2) || key(0) == key(1) {
		t.Errorf("keys %q, %q, %q; want the first and the third alike", key(0), key(1), key(2))
	}
}

// TestTraceKeepsItsTimes: each row at its time, twice as fast, from when the window opens, and
// the window ends behind the last.
func TestTraceKeepsItsTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &timed{}
		load := traceLoad(mustParseTrace(t, "time,key,size\n7,a,1\n7,b,1\n9,a,1\n15,b,1\n"), 2)
		g := mustGenerator(t, load, s)
		if err := g.makeMessages(nil); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() { g.run(t.Context(), nil) })
		time.Sleep(3 * time.Second) // nothing is due before the window opens
		opened := time.Now()
		g.openWindow(opened)
		<-g.exhausted
		wg.Wait()
		if took := time.Since(opened); took != 4*time.Second {
			t.Errorf("the window ends after %v; want 4s", took)
		}
		want := []time.Duration{0, 0, time.Second, 4 * time.Second}
		for i, at := range s.at {
			if i >= len(want) || at.Sub(opened) != want[i] {
				t.Errorf("call %d comes %v after the window opened; want %v", i, at.Sub(opened), want)
			}
		}
		if len(s.at) != len(want) || g.ledger.accepted.Load() != 4 {
			t.Errorf("%d calls, %d events accepted; want 4", len(s.at), g.ledger.accepted.Load())
		}
	})
}

// timed notes when calls come.
type timed struct {
	mu sync.Mutex
	at []time.Time
}

func (s *timed) send(context.Context, *call) outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = append(s.at, time.Now())
	return outcome{}
}

func (*timed) close() error { return nil }
