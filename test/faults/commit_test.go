package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/internal/pgtest"
	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/test/faults/proxy"
)

func TestMain(m *testing.M) {
	pgtest.Main(m, pgtest.Options{Template: func(ctx context.Context, url string) error {
		return pipeline.Migrate(ctx, url, pipeline.DefaultSpec())
	}})
}

// A commit whose answer is lost must not pass for one that was not made: the producer
// would be told that nothing was stored.
func TestCommitWithoutAnAnswerIsUnknown(t *testing.T) {
	for _, test := range []struct {
		name   string
		events int
		answer string // the tag of the answer that is lost
	}{
		{"one statement", 1, ""},
		{"copy and commit", 200, "COMMIT"},
	} {
		t.Run(test.name, func(t *testing.T) {
			direct := pgtest.New(t)
			store, way := mustOpenVia(t, direct, func(data []byte) int {
				if test.answer == "" {
					return proxy.PostgresResponse(data)
				}
				if at := bytes.Index(data, []byte(test.answer)); at >= 5 {
					return at - 5
				}
				return -1
			})
			mustAppendBefore(t, store)
			way.Set(proxy.Fault{Mode: proxy.LoseResponse, Every: 1})
			_, err := store.Append(t.Context(), mustEvents(t, test.events), 0, 1<<20)
			if !errors.Is(err, pipeline.ErrOutcomeUnknown) {
				t.Errorf("the error is %v, want that the outcome is unknown", err)
			}
			if n := mustCount(t, direct); n != test.events {
				t.Errorf("%d events are stored, want %d: no answer to a commit was lost", n, test.events)
			}
		})
	}
}

// mustAppendBefore stores an event, so that the store knows of its key, whose head is another COMMIT
// otherwise.
func mustAppendBefore(t *testing.T, store *pipeline.Store) {
	t.Helper()
	events := mustEvents(t, 1)
	events[0].ID = "before"
	if _, err := store.Append(t.Context(), events, 0, 1<<20); err != nil {
		t.Fatal(err)
	}
}

// mustOpenVia opens a store whose connections go through a proxy.
func mustOpenVia(t *testing.T, direct string, response proxy.Response) (*pipeline.Store, *proxy.Proxy) {
	t.Helper()
	u, err := url.Parse(direct)
	if err != nil {
		t.Fatal(err)
	}
	p, err := proxy.New(u.Host, response)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
	u.Host = p.Addr()
	store, err := pipeline.OpenStore(t.Context(), pipeline.DefaultStoreConfig(u.String()), pipeline.DefaultLanes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	return store, p
}

func mustEvents(t *testing.T, n int) []pipeline.Event {
	t.Helper()
	events := make([]pipeline.Event, n)
	for i := range events {
		e, err := pipeline.NewEvent(&pb.CloudEvent{Id: fmt.Sprint(i), Source: "/s", Type: "t", SpecVersion: "1.0"}, 1<<10)
		if err != nil {
			t.Fatal(err)
		}
		events[i] = e
	}
	return events
}

// mustCount waits for the server to finish what it was sent, and counts the events since then.
func mustCount(t *testing.T, url string) int {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	n := 0
	for deadline := time.Now().Add(patience); n == 0 && time.Now().Before(deadline); {
		if err := conn.QueryRow(t.Context(), `SELECT count(*) FROM waybill.events WHERE event_id <> 'before'`).Scan(&n); err != nil {
			t.Fatal(err)
		}
	}
	return n
}
