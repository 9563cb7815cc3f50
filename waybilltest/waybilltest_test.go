package waybilltest_test

import (
	"fmt"
	"go/token"
	"maps"
	"net"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/waybillhq/waybill/internal/archivecheck"
	"github.com/waybillhq/waybill/internal/process"
	"github.com/waybillhq/waybill/waybilltest"
)

// patience bounds a wait for what must come about; no test waits for it to pass.
const patience = time.Minute

// startLimit is what Start may take once Postgres runs: a second or less, unless the machine has other things to do.
const startLimit = 10 * time.Second

// numbered are events with the ids "1" to "n".
func numbered(source string, n int) []waybilltest.Event {
	events := make([]waybilltest.Event, n)
	for i := range events {
		events[i] = waybilltest.Event{ID: fmt.Sprint(i + 1), Source: source, Type: "t"}
	}
	return events
}

// An event comes out as it went in, whatever it is made of.
func TestEventsComeOutAsTheyWentIn(t *testing.T) {
	t.Parallel()
	w := waybilltest.Start(t)
	at := time.Date(2026, 11, 30, 8, 0, 0, 123_000_000, time.UTC)
	events := []waybilltest.Event{
		{
			ID: "all", Source: "/a", Type: "t", Subject: "s", Time: at, DataContentType: "application/json", DataSchema: "https://example.com/s",
			Extensions: map[string]any{"text": "x", "flag": true, "number": 7, "blob": []byte{1, 2}, "when": at}, Data: []byte(`{"n":1}`),
		},
		{ID: "bytes", Source: "/a", Type: "t", DataContentType: "application/octet-stream", Data: []byte{0, 255}},
		{ID: "none", Source: "/a", Type: "t"},
	}
	w.Emit(t, events...)
	got := w.Expect(t, waybilltest.Filter{Source: "/a"}, len(events), patience)
	for i, want := range events {
		if want.Extensions != nil {
			want.Extensions["number"] = int32(7)
		}
		is := got[i]
		if is.Seqnum != int64(i+1) || is.Deliveries != 1 || time.Since(is.ReceivedAt) > patience {
			t.Errorf("%s: seqnum %d, %d deliveries, received at %v", is, is.Seqnum, is.Deliveries, is.ReceivedAt)
		}
		is.Seqnum, is.Deliveries, is.ReceivedAt = 0, 0, time.Time{}
		if !reflect.DeepEqual(is, want) {
			t.Errorf("got  %#v\nwant %#v", is, want)
		}
	}
	archived := w.ExpectArchived(t, waybilltest.Filter{ID: "all", Subject: "s"}, 1, patience)[0]
	if !archived.Time.Equal(at) || string(archived.Data) != `{"n":1}` || archived.Extensions["number"] != int32(7) || archived.Extensions["flag"] != true {
		t.Errorf("archived: %#v", archived)
	}
}

// A filter picks by every field that it has.
func TestFilter(t *testing.T) {
	t.Parallel()
	w := waybilltest.Start(t, waybilltest.WithLanes(1)) // one order for all
	w.Emit(t,
		waybilltest.Event{ID: "1", Source: "/a/1", Type: "t.x", Subject: "s", Data: []byte("one")},
		waybilltest.Event{ID: "2", Source: "/a/2", Type: "t.y", Extensions: map[string]any{"color": "red", "n": 1}},
		waybilltest.Event{ID: "3", Source: "/b", Type: "t.x", Extensions: map[string]any{"color": "red", "n": int32(2)}})
	w.Expect(t, waybilltest.Filter{}, 3, patience)
	for _, c := range []struct {
		filter waybilltest.Filter
		want   string
	}{
		{waybilltest.Filter{Source: "/a/*"}, "1 2"},
		{waybilltest.Filter{Source: "/a"}, ""},
		{waybilltest.Filter{Type: "t.x"}, "1 3"},
		{waybilltest.Filter{Type: "t.*", Source: "/b"}, "3"},
		{waybilltest.Filter{Subject: "s"}, "1"},
		{waybilltest.Filter{ID: "2"}, "2"},
		{waybilltest.Filter{Extensions: map[string]any{"color": "red"}}, "2 3"},
		{waybilltest.Filter{Extensions: map[string]any{"color": "red", "n": 1}}, "2"},
		{waybilltest.Filter{Extensions: map[string]any{"n": "1"}}, ""},
		{waybilltest.Filter{Match: func(e waybilltest.Event) bool { return string(e.Data) == "one" }}, "1"},
	} {
		var ids []string
		for _, e := range w.Received(c.filter) {
			ids = append(ids, e.ID)
		}
		slices.Sort(ids)
		if got := strings.Join(ids, " "); got != c.want {
			t.Errorf("%s: %q, want %q", c.filter, got, c.want)
		}
	}
}

// Eight at once see their own events only.
func TestManyAtOnce(t *testing.T) {
	for i := range 8 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			w := waybilltest.Start(t)
			t.Logf("started after %v", time.Since(began))
			source := fmt.Sprintf("/of/%d", i)
			w.Emit(t, numbered(source, 50+i)...)
			for place, expect := range map[string]func(testing.TB, waybilltest.Filter, int, time.Duration) []waybilltest.Event{
				"endpoint": w.Expect, "archive": w.ExpectArchived,
			} {
				for n, e := range expect(t, waybilltest.Filter{}, 50+i, patience) {
					if e.Source != source || e.Seqnum != int64(n+1) {
						t.Errorf("%s: %s is number %d", place, e, n)
					}
				}
			}
			mustBeSound(t, w, 50+i)
		})
	}
}

// mustBeSound reads the archive with what checks real ones.
func mustBeSound(t *testing.T, w *waybilltest.Waybill, events int) {
	t.Helper()
	settings := process.DefaultS3()
	settings.S3Endpoint, settings.S3Region, settings.S3AccessKey, settings.S3SecretKey = w.Archive.Endpoint, w.Archive.Region, w.Archive.AccessKey, w.Archive.SecretKey
	settings.S3Bucket, settings.S3Prefix, settings.S3PathStyle = w.Archive.Bucket, w.Archive.Prefix, true
	reader, err := settings.ArchiveReader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	report, err := archivecheck.Check(t.Context(), reader, nil, nil)
	if err != nil || report.Bad != 0 || report.Events != int64(events) {
		t.Errorf("%v: %+v", err, report)
	}
}

// Start is quick once Postgres runs, and when the test is over nothing is left of it: no database, no address that
// somebody listens on, no goroutine.
func TestStartIsQuickAndNothingIsLeft(t *testing.T) {
	t.Run("first", func(t *testing.T) { waybilltest.Start(t) }) // with it Postgres starts
	before := goleak.IgnoreCurrent()
	var w *waybilltest.Waybill
	t.Run("a test", func(t *testing.T) {
		began := time.Now()
		w = waybilltest.Start(t)
		took := time.Since(began)
		t.Logf("started after %v", took)
		if took > startLimit {
			t.Errorf("it took %v to start, want less than %v", took, startLimit)
		}
		w.Emit(t, numbered("/a", 10)...)
		w.Expect(t, waybilltest.Filter{}, 10, patience)
		w.ExpectArchived(t, waybilltest.Filter{}, 10, patience)
		w.DeadLetters(t, waybilltest.Filter{})
	})
	t.Run("one that cannot start", func(t *testing.T) {
		mustFail(t, func(t testing.TB) {
			waybilltest.Start(t, waybilltest.WithBehaviour(waybilltest.Behaviour{RefuseType: "("}))
		})
	})
	if conn, err := pgx.Connect(t.Context(), w.DatabaseURL); err == nil {
		_ = conn.Close(t.Context())
		t.Error("the database is still there")
	}
	for name, address := range map[string]string{"HTTP": w.HTTPURL, "gRPC": "grpc://" + w.GRPCAddr, "NATS": w.NATSURL, "archive": w.Archive.Endpoint} {
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		if conn, err := net.Dial("tcp", u.Host); err == nil {
			_ = conn.Close()
			t.Errorf("somebody still listens for %s", name)
		}
	}
	if err := goleak.Find(before); err != nil {
		t.Error(err)
	}
}

// Nobody outside can name a type of an internal package, so none is in the interface.
func TestUsersCanNameEveryType(t *testing.T) {
	seen := map[reflect.Type]bool{}
	var walk func(where string, of reflect.Type)
	walk = func(where string, of reflect.Type) {
		if seen[of] {
			return
		}
		seen[of] = true
		if strings.Contains(of.PkgPath(), "/internal") {
			t.Errorf("%s is a %s", where, of)
		}
		for m := range of.Methods() {
			walk(where+"."+m.Name, m.Type)
		}
		switch of.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Chan, reflect.Map:
			walk(where, of.Elem())
		case reflect.Func:
			for i := range of.NumIn() {
				walk(where, of.In(i))
			}
			for i := range of.NumOut() {
				walk(where, of.Out(i))
			}
		case reflect.Struct:
			for i := range of.NumField() {
				if f := of.Field(i); f.IsExported() && strings.HasPrefix(of.PkgPath(), "github.com/waybillhq/") {
					walk(where+"."+f.Name, f.Type)
				}
			}
		}
	}
	walk("Start", reflect.TypeOf(waybilltest.Start))
	walk("DeadLetter", reflect.TypeFor[waybilltest.DeadLetter]())
	for name, option := range map[string]any{
		"WithLanes": waybilltest.WithLanes, "WithEventTTL": waybilltest.WithEventTTL, "WithDedupeAttribute": waybilltest.WithDedupeAttribute,
		"WithBehaviour": waybilltest.WithBehaviour, "WithLog": waybilltest.WithLog,
	} {
		out := reflect.TypeOf(option).In(0) // what it gives is an Option, which nobody has to look into
		walk(name, out)
	}
	var own []string
	for of := range maps.Keys(seen) {
		if of.PkgPath() == "github.com/waybillhq/waybill/waybilltest" && token.IsExported(of.Name()) {
			own = append(own, of.Name())
		}
	}
	slices.Sort(own)
	if want := []string{"Archive", "Behaviour", "DeadLetter", "Event", "Filter", "Option", "Waybill"}; !slices.Equal(own, want) {
		t.Errorf("the types of the interface are %q, want %q", own, want)
	}
}
