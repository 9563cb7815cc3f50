package pipeline

import (
	"context"
	"io"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// An ingest that stands still in the middle of a COPY must not keep the heads of its keys:
// no timeout of Postgres ends a COPY that waits for its client.
func TestStalledCopyIsEnded(t *testing.T) {
	store := mustStore(t)
	mustAppend(t, store, mustEvents(t, 1, 1))
	conn, err := store.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := conn.Exec(t.Context(), `BEGIN`); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `UPDATE waybill.heads SET version = version + 1`); err != nil {
		t.Fatal(err)
	}
	data, stop := io.Pipe()
	copied := make(chan error, 1)
	go func() {
		_, err := conn.Conn().PgConn().CopyFrom(context.Background(), data, copyEventsSQL)
		copied <- err
	}()
	defer stop.Close()
	if _, err := stop.Write([]byte("PGCOPY\n\xff\r\n\x00")); err != nil {
		t.Fatal(err)
	}
	if n, err := store.EndStalledCopies(t.Context(), time.Minute); n != 0 || err != nil {
		t.Errorf("%d copies were ended that are not stalled yet (%v)", n, err)
	}
	for deadline := time.Now().Add(patience); ; {
		n, err := store.EndStalledCopies(t.Context(), time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		if n == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the stalled copy is not ended")
		}
	}
	if _, err := store.pool.Exec(t.Context(), `SELECT FROM waybill.heads FOR UPDATE`, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Errorf("the heads are still held: %v", err)
	}
	if err := stop.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-copied; err == nil {
		t.Error("the copy of a session that was ended succeeded")
	}
}
