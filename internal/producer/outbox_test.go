package producer

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/internal/pgtest"
	"github.com/waybillhq/waybill/pipeline"
)

func TestMain(m *testing.M) {
	pgtest.Main(m, pgtest.Options{Template: func(ctx context.Context, url string) error {
		return pipeline.Migrate(ctx, url, pipeline.DefaultSpec())
	}})
}

func mustOutbox(t *testing.T, url string) *Outbox {
	t.Helper()
	o, err := NewOutbox(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.Close)
	return o
}

// The valid events of a call are committed, and the others refused.
func TestOutbox(t *testing.T) {
	url := pgtest.New(t)
	o := mustOutbox(t, url)
	bad := event("bad")
	bad.Type = ""
	for _, events := range [][]*pb.CloudEvent{{event("1"), bad, event("2")}, {bad}, {event("3")}} {
		for i, err := range o.Send(t.Context(), events) {
			var refused *RefusedError
			if isBad := events[i] == bad; isBad != errors.As(err, &refused) || !isBad && err != nil || isBad && !strings.HasPrefix(refused.Reason, "type") {
				t.Errorf("event %s: %v", events[i].Id, err)
			}
		}
	}
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	rows, err := conn.Query(t.Context(), `SELECT event_id FROM waybill.outbox ORDER BY event_id`)
	if err != nil {
		t.Fatal(err)
	}
	if ids, err := pgx.CollectRows(rows, pgx.RowTo[string]); err != nil || !slices.Equal(ids, []string{"1", "2", "3"}) {
		t.Errorf("in the outbox: %q, %v", ids, err)
	}
}

// What fails before the commit may be tried again, since nothing was stored.
func TestOutboxThatCannotBeReached(t *testing.T) {
	for what, url := range map[string]string{
		"no server": "postgres://u:secret@127.0.0.1:1/db?sslmode=disable", "no outbox": pgtest.NewEmpty(t),
	} {
		for _, err := range mustOutbox(t, url).Send(t.Context(), []*pb.CloudEvent{event("1"), event("2")}) {
			var again *TryAgainError
			if !errors.As(err, &again) || again.Unknown || strings.Contains(err.Error(), "secret") {
				t.Errorf("%s: %+v", what, err)
			}
		}
	}
	if _, err := NewOutbox("postgres://u:secret@["); err == nil || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), "want postgres://") {
		t.Errorf("what is no URL: %v", err)
	}
}
