package bench

import (
	"context"
	"errors"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/waybillhq/waybill/internal/devstack"
	"github.com/waybillhq/waybill/internal/process"
	"github.com/waybillhq/waybill/internal/s3mem"
)

// smallS3Plan is everything once, and small.
func smallS3Plan() s3Plan {
	return s3Plan{
		cell: 100 * time.Millisecond, sizes: []int{10, 2000}, writers: []int{1, 3},
		objectEvents: []int{1, 20}, counts: []int{10, 30},
	}
}

// mustStartS3 returns the settings of a server that exists.
func mustStartS3(t *testing.T) process.S3 {
	t.Helper()
	server, err := devstack.StartS3(t.Context(), devstack.S3Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Stop() }) // with the test all is said
	settings := process.DefaultS3()
	settings.S3Endpoint, settings.S3AccessKey, settings.S3SecretKey, settings.S3PathStyle = server.Endpoint, server.AccessKey, server.SecretKey, true
	return settings
}

func mustOpenS3(t *testing.T, settings process.S3) *s3Kit {
	t.Helper()
	config := DefaultConfig()
	config.S3, config.Say = settings, func(string) {}
	b := &Bench{config: config, report: newReport(Scenario{Name: "s3"}, config)}
	k, err := openS3(t.Context(), b, smallS3Plan())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// mustServeS3InMemory returns the settings of a server in memory.
func mustServeS3InMemory(t *testing.T) process.S3 {
	t.Helper()
	const key = "tests"
	server := httptest.NewServer(s3mem.New(key, key))
	t.Cleanup(server.Close)
	settings := process.DefaultS3()
	settings.S3Endpoint, settings.S3AccessKey, settings.S3SecretKey, settings.S3PathStyle = server.URL, key, key, true
	return settings
}

// TestS3MeasuresAServer that was there before, and leaves nothing on it. That in memory passes every check
// that a real one does.
func TestS3MeasuresAServer(t *testing.T) {
	t.Run("versitygw", func(t *testing.T) { testS3MeasuresAServer(t, mustStartS3(t)) })
	t.Run("in memory", func(t *testing.T) { testS3MeasuresAServer(t, mustServeS3InMemory(t)) })
}

func testS3MeasuresAServer(t *testing.T, settings process.S3) {
	config := DefaultConfig()
	config.Dir, config.Executable, config.Say, config.S3 = t.TempDir(), "waybill", func(string) {}, settings
	report, err := Run(t.Context(), config, Scenario{Name: "s3", Run: func(ctx context.Context, b *Bench) error { return b.measureS3(ctx, smallS3Plan()) }})
	if err != nil {
		t.Fatal(err)
	}
	var checked []string
	for _, v := range report.Correctness {
		checked = append(checked, v.Sink)
		if !v.OK() || v.Accepted == 0 || v.Delivered != v.Accepted {
			t.Errorf("%v", v)
		}
	}
	if want := []string{"read after write", "list after write", "read after overwrite", archiveSink}; !slices.Equal(checked, want) {
		t.Errorf("checked: %q; want %q", checked, want)
	}
	for name, want := range map[string]float64{
		"answers lost, conditional append: doubles":              0,
		"answers lost, a key for each try: doubles":              redeliveries * redeliveredEvents,
		"objects of 20: PUTs of 1000 events":                     50,
		"objects of 20: PUTs of a month at 1000 events/s":        657.45,
		"share of answers that ask to slow down (429, 503)":      0,
		"30 objects: LIST and GET of all":                        1*0.005/1000 + 30*0.0004/1000,
		"answers lost, conditional append: PUTs of a batch":      2.06,
		"PUT of 1 KiB, 3 writers":                                -1,
		"objects of 1: arrival to stored at 1000 events/s, p99":  -1,
		"objects of 20: arrival to stored at 1000 events/s, p50": -1,
		"30 objects: LIST of the newest 3 (StartAfter)":          -1,
	} {
		i := slices.IndexFunc(report.Figures, func(f Figure) bool { return f.Name == name })
		switch {
		case i < 0:
			t.Errorf("there is no figure %q", name)
		case want < 0 && report.Figures[i].Value <= 0:
			t.Errorf("%s: %v; want more than 0", name, report.Figures[i].Value)
		case want >= 0 && math.Abs(report.Figures[i].Value-want) > 1e-9+want/1e6:
			t.Errorf("%s: %v; want %v", name, report.Figures[i].Value, want)
		}
	}
	for _, s := range report.Series {
		for _, l := range s.Lines {
			if len(l.X) != 2 || len(s.Names) != 2 || l.Y[0] <= 0 {
				t.Errorf("series %s, line %s: %v, %v over %q", s.Title, l.Name, l.X, l.Y, s.Names)
			}
		}
	}
	k := mustOpenS3(t, settings)
	k.prefix = ""
	if keys, _, err := k.list(t.Context(), k.client, "", ""); err != nil || len(keys) != 0 {
		t.Errorf("left behind: %q, %v", keys, err)
	}
}

// TestS3SeesWhatIsNotThere: a missing object, another content, a listing that lacks a key.
func TestS3SeesWhatIsNotThere(t *testing.T) {
	k := mustOpenS3(t, mustStartS3(t))
	if err := k.put(t.Context(), k.client, "a/1", []byte("one")); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		key, want string
		seen      bool
	}{{"a/1", "one", true}, {"a/1", "two", false}, {"a/2", "one", false}} {
		if seen, err := k.reads(t.Context(), k.client, test.key, test.want); err != nil || seen != test.seen {
			t.Errorf("%s = %s: %v, %v; want %v", test.key, test.want, seen, err, test.seen)
		}
	}
	if _, err := k.wantListed(t.Context(), "a/", "", 2); err == nil || !strings.Contains(err.Error(), "shows 1") {
		t.Errorf("a listing of 1 object where there should be 2: %v", err)
	}
	v := Verdict{Sink: "read after write"}
	note(&v, true, "a/1")
	note(&v, false, "a/2")
	if v.OK() || v.Accepted != 2 || v.Delivered != 1 || len(v.Examples) != 1 {
		t.Errorf("%v", v)
	}
}

// TestS3Meter: an answer that says to slow down is counted each time, and a lost one is as none.
func TestS3Meter(t *testing.T) {
	var calls atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1) <= 2 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	settings := process.DefaultS3()
	settings.S3Endpoint, settings.S3AccessKey, settings.S3SecretKey, settings.S3PathStyle = server.URL, "a", "b", true
	k := &s3Kit{settings: settings}
	put := func(client *s3.Client) error {
		_, err := client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("b"), Key: aws.String("k"), Body: strings.NewReader("x")})
		return err
	}
	client, meter, err := k.newClient(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := put(client); err != nil || meter.slowDowns.Load() != 2 || meter.answers.Load() != 3 || meter.puts.Load() != 3 {
		t.Errorf("%v; %d of %d answers say to slow down, %d PUTs; want 2 of 3, and 3", err, meter.slowDowns.Load(), meter.answers.Load(), meter.puts.Load())
	}
	if client, meter, err = k.newClient(t.Context(), withoutRetries); err != nil {
		t.Fatal(err)
	}
	lose := func() bool { return true }
	meter.lose.Store(&lose)
	if err := put(client); !errors.Is(err, errAnswerLost) || meter.puts.Load() != 1 || calls.Load() != 4 {
		t.Errorf("%v after %d PUTs, of which the server has seen %d; want one that it has seen", err, meter.puts.Load(), calls.Load()-3)
	}
}

func TestS3Costs(t *testing.T) {
	// 500 events an object at 2,700 events/s, about $70 a month.
	if got := perMonth(2700.0/500, DefaultS3Prices().Puts); got < 70 || got > 72 {
		t.Errorf("%v dollars; want about 71", got)
	}
}

// TestPutMany ends when so many are done, or when the time is up; failures are counted apart.
func TestPutMany(t *testing.T) {
	broken := errors.New("broken")
	run := putMany(4, 100, time.Minute, func(n int64) error {
		if n%10 == 0 {
			return broken
		}
		return nil
	})
	if run.done != 90 || run.failed != 10 || !errors.Is(run.err, broken) || run.latency.TotalCount() != 90 {
		t.Errorf("%+v; want 90 done and 10 failed", run)
	}
	run = putMany(2, math.MaxInt64, 20*time.Millisecond, func(int64) error { time.Sleep(time.Millisecond); return nil })
	if run.done < 2 || run.done > 100 || run.took > 10*time.Second {
		t.Errorf("%d done within %v; want one of each writer at least, and an end after 20 ms", run.done, run.took)
	}
}

// TestSteadyCountsFromArrival: a lone event waits for nobody, and the first of three for the third.
// How long a PUT takes on a machine with much else to do is left open: the events are so far apart that no moment
// in which it stands still is of all of them.
func TestSteadyCountsFromArrival(t *testing.T) {
	k := mustOpenS3(t, mustStartS3(t))
	for _, test := range []struct {
		perObject         int
		rate              float64
		length            time.Duration
		done              int64
		shortest, longest time.Duration // that an event waits, less than and at least
	}{
		{1, 0.5, 4400 * time.Millisecond, 3, 1800 * time.Millisecond, 0},
		{3, 1, 6400 * time.Millisecond, 2, 1800 * time.Millisecond, 1999 * time.Millisecond},
	} {
		o, err := newObjects(test.perObject)
		if err != nil {
			t.Fatal(err)
		}
		run := k.steady(t.Context(), o, test.rate, test.length)
		shortest, longest := time.Duration(run.latency.Min())*latencyUnit, time.Duration(run.latency.Max())*latencyUnit
		if run.done != test.done || run.failed != 0 || run.latency.TotalCount() != test.done*int64(test.perObject) || shortest >= test.shortest || longest < test.longest {
			t.Errorf("%d events an object: %d objects, %d failed, waits of %v to %v; want %d, waits of less than %v to at least %v",
				test.perObject, run.done, run.failed, shortest, longest, test.done, test.shortest, test.longest)
		}
	}
}
