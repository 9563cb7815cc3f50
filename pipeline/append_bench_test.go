package pipeline

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/waybillhq/waybill/internal/pgtest"
)

// benchEvents makes n new events of 256 bytes of data, of 200 keys.
func benchEvents(b *testing.B, n, round int) []Event {
	events := make([]Event, n)
	for i := range events {
		e, err := NewEvent(&pb.CloudEvent{
			Id: fmt.Sprintf("%d-%d", round, i), Source: fmt.Sprint("/bench/", (round+i)%200), Type: "bench.event", SpecVersion: "1.0",
			Data: &pb.CloudEvent_TextData{TextData: strings.Repeat("x", 256)},
		}, DefaultMaxEventBytes)
		if err != nil {
			b.Fatal(err)
		}
		events[i] = e
	}
	return events
}

// BenchmarkAppend compares flushes with the dedupe window on and off, one after the other in
// turn, on a server of its own with fsync. It reports the median of each, their ratio, and the
// WAL of an event. With a size of 1 it also reports the commit of a single row.
func BenchmarkAppend(b *testing.B) {
	cluster := pgtest.NewCluster(b)
	for _, size := range []int{1, 100, 4096} {
		b.Run(fmt.Sprint(size), func(b *testing.B) { benchAppend(b, cluster.URL, size) })
	}
}

func benchAppend(b *testing.B, url func(string) string, size int) {
	admin, err := pgx.Connect(b.Context(), url("postgres"))
	if err != nil {
		b.Fatal(err)
	}
	defer admin.Close(context.Background())
	var stores [2]*Store
	for i, window := range []time.Duration{0, DefaultDedupeWindow} {
		name := fmt.Sprintf("bench_%d_%d_%d", size, i, time.Now().UnixNano())
		mustExec(b, admin, "CREATE DATABASE "+name)
		spec := DefaultSpec()
		spec.DedupeWindow = window
		if err := Migrate(b.Context(), url(name), spec); err != nil {
			b.Fatal(err)
		}
		cfg := DefaultStoreConfig(url(name))
		cfg.KeepPlans = true // as ingest does
		if stores[i], err = OpenStore(b.Context(), cfg, DefaultLanes); err != nil {
			b.Fatal(err)
		}
		defer stores[i].Close()
	}
	// On a connection of its own, as the flushes are: one that was just used answers sooner.
	single, err := pgx.Connect(b.Context(), url("postgres"))
	if err != nil {
		b.Fatal(err)
	}
	defer single.Close(context.Background())
	mustExec(b, single, "CREATE TABLE IF NOT EXISTS single (n bigint)")
	on := newDeduper(stores[1], DefaultDedupeBytes)
	took, wal := [3][]time.Duration{}, [3]int64{}
	measure := func(way int, f func() error) {
		before := walPosition(b, admin)
		began := time.Now()
		if err := f(); err != nil {
			b.Fatal(err)
		}
		took[way] = append(took[way], time.Since(began))
		wal[way] += walPosition(b, admin) - before
	}
	b.ResetTimer()
	for round := range b.N {
		events := benchEvents(b, size, round)
		for _, way := range [][]int{{0, 1, 2}, {2, 1, 0}}[round%2] {
			switch way {
			case 0:
				measure(0, func() error { _, err := stores[0].Append(b.Context(), events, time.Hour, 1<<20); return err })
			case 1:
				measure(1, func() error { _, _, err := on.appendOnce(b.Context(), events, time.Hour, 1<<20); return err })
			default:
				measure(2, func() error { _, err := single.Exec(b.Context(), "INSERT INTO single VALUES (1)"); return err })
			}
		}
	}
	b.StopTimer()
	off, with := median(took[0]), median(took[1])
	b.ReportMetric(off.Seconds()*1e3, "ms-off")
	b.ReportMetric(with.Seconds()*1e3, "ms-on")
	b.ReportMetric(median(took[2]).Seconds()*1e3, "ms-single-row")
	b.ReportMetric(with.Seconds()/off.Seconds(), "on/off")
	b.ReportMetric(float64(wal[0])/float64(b.N*size), "WAL-B/event-off")
	b.ReportMetric(float64(wal[1])/float64(b.N*size), "WAL-B/event-on")
	b.ReportMetric(0, "ns/op")
}

// execer is a connection, or a pool of them.
type execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

func mustExec(t testing.TB, db execer, sql string) {
	t.Helper()
	if _, err := db.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

func walPosition(b *testing.B, conn *pgx.Conn) (n int64) {
	b.Helper()
	if err := conn.QueryRow(b.Context(), `SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn`).Scan(&n); err != nil {
		b.Fatal(err)
	}
	return n
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}
