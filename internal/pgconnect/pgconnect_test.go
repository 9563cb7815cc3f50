package pgconnect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// mustFail connects to where that cannot work.
func mustFail(t *testing.T, url string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err == nil {
		_ = conn.Close(ctx)
		t.Fatalf("it connects to %s", url)
	}
	return fmt.Errorf("some act: %w", err)
}

// mustAnswer is the address of a server that answers everybody with the same error; a code of none: not at all.
func mustAnswer(t *testing.T, code, message string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				backend := pgproto3.NewBackend(conn, conn)
				if _, err := backend.ReceiveStartupMessage(); err != nil {
					return
				}
				if code == "" {
					<-t.Context().Done()
					return
				}
				backend.Send(&pgproto3.ErrorResponse{Severity: "FATAL", Code: code, Message: message})
				_ = backend.Flush()
			}()
		}
	}()
	return l.Addr().String()
}

// Where, as whom and why is said once, and never the password.
func TestExplain(t *testing.T) {
	refuses := mustAnswer(t, "28P01", `password authentication failed for user "me"`)
	silent := mustAnswer(t, "", "")
	for url, want := range map[string]string{
		"postgres://me:geheim@127.0.0.1:1/db":             "connect to Postgres at 127.0.0.1:1, database db, as user me: connection refused",
		"postgres://me:geheim@127.0.0.1:1":                "connect to Postgres at 127.0.0.1:1, database me, as user me: connection refused",
		"postgres://me:geheim@127.0.0.1:1,127.0.0.1:2/db": "connect to Postgres at 127.0.0.1:1, 127.0.0.1:2, database db, as user me: connection refused",
		"postgres://me:geheim@nosuch.invalid/db":          "connect to Postgres at nosuch.invalid:5432, database db, as user me: nosuch.invalid: ",
		"postgres:///db?user=me&host=/nosuch":             "connect to Postgres at /nosuch, database db, as user me: no such file or directory",
		"postgres://me:geheim@" + refuses + "/db?sslmode=disable": "connect to Postgres at " + refuses +
			`, database db, as user me: password authentication failed for user "me" (SQLSTATE 28P01)`,
		"postgres://me:geheim@" + silent + "/db?sslmode=disable": "connect to Postgres at " + silent + ", database db, as user me: no answer in time",
	} {
		before := mustFail(t, url)
		err := Explain(before, "")
		text := strings.ReplaceAll(err.Error(), "connect: ", "")
		if text != want && !(strings.HasSuffix(want, ": ") && strings.HasPrefix(text, want) && strings.Count(text, "nosuch.invalid") == 2) {
			t.Errorf("%s: %q, want %q", url, text, want)
		}
		if failed := (*pgconn.ConnectError)(nil); !errors.As(err, &failed) || !errors.Is(err, before) {
			t.Errorf("%s: the cause is lost: %v", url, err)
		}
		if again := fmt.Errorf("x: %w", err); Explain(again, "") != again {
			t.Errorf("%s: it is explained twice", url)
		}
	}
	if other := errors.New("other"); Explain(other, "--x") != other || Explain(nil, "--x") != nil {
		t.Error("it explains what is no failed connection")
	}
	err := Explain(mustFail(t, "postgres://me:geheim@127.0.0.1:1/db"), "--x (WAYBILL_X)")
	if !strings.HasSuffix(err.Error(), "connection refused; start Postgres there, or correct host and port in --x (WAYBILL_X)") {
		t.Errorf("with a setting: %v", err)
	}
}

func TestRemedy(t *testing.T) {
	seen := map[string]bool{}
	for _, code := range []string{"", "28P01", "3D000", "53300", "57P03", "42501"} {
		err := error(&pgconn.PgError{Code: code})
		if code == "" {
			err = errors.New("refused")
		}
		remedy := Remedy(fmt.Errorf("x: %w", err), "--database-url")
		seen[remedy] = true
		if named := strings.Contains(remedy, "--database-url"); named == (code == "53300" || code == "57P03") {
			t.Errorf("%s: %s", code, remedy)
		}
	}
	if len(seen) != 6 {
		t.Errorf("%v", seen)
	}
}
