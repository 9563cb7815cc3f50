// Package pgconnect says for people what became of a connection to Postgres, and what to do about it. The driver's own
// text has each attempt twice, with and without TLS, and neither has the setting that is to be corrected.
package pgconnect

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/waybillhq/waybill/internal/netfault"
)

// Error is a failed connection in one line: where, as whom, and why. It unwraps to what the driver, and whoever called
// it, said.
type Error struct {
	text string
	err  error
}

func (e *Error) Error() string { return e.text }
func (e *Error) Unwrap() error { return e.err }

// Away reports that no server answered.
func (e *Error) Away() bool {
	var answer *pgconn.PgError
	return !errors.As(e.err, &answer)
}

// Explain returns an *Error in place of an error that is about a connection that was not made, and any other error as
// it is. setting is what names the server, such as --database-url: the text says what to do about it; empty: it does
// not. The password is not in the text.
func Explain(err error, setting string) error {
	var told *Error
	var failed *pgconn.ConnectError
	if errors.As(err, &told) || !errors.As(err, &failed) {
		return err
	}
	database := failed.Config.Database
	if database == "" {
		database = failed.Config.User // as the server takes it
	}
	places, reasons := attempts(failed)
	text := fmt.Sprintf("connect to Postgres at %s, database %s, as user %s: %s",
		strings.Join(places, ", "), database, failed.Config.User, strings.Join(reasons, "; "))
	if setting != "" {
		text += "; " + Remedy(err, setting)
	}
	return &Error{err: err, text: text}
}

// attempts returns where a connection was tried and what came of it, each thing once.
func attempts(failed *pgconn.ConnectError) (places, reasons []string) {
	places = append(places, place(failed.Config.Host, failed.Config.Port))
	for _, f := range failed.Config.Fallbacks {
		places = append(places, place(f.Host, f.Port))
	}
	places = unique(places)
	for _, err := range joined(failed.Unwrap()) {
		reasons = append(reasons, reason(err))
	}
	return places, unique(reasons)
}

func place(host string, port uint16) string {
	if strings.HasPrefix(host, "/") {
		return host // a directory of sockets
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}

// unique keeps the first of what is the same.
func unique(texts []string) (out []string) {
	for _, text := range texts {
		if !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	return out
}

// joined are the errors that errors.Join put together, somewhere below err; err alone if it did not.
func joined(err error) []error {
	for inner := err; inner != nil; inner = errors.Unwrap(inner) {
		if all, ok := inner.(interface{ Unwrap() []error }); ok {
			return all.Unwrap()
		}
	}
	return []error{err}
}

// reason is why one attempt failed, without where it was, which the caller says.
func reason(err error) string {
	var answer *pgconn.PgError
	if errors.As(err, &answer) {
		return answer.Message + " (SQLSTATE " + answer.Code + ")"
	}
	if text, ok := netfault.Reason(err); ok {
		return text
	}
	_, text, ok := strings.Cut(err.Error(), "): ") // behind address (host)
	if !ok {
		text = err.Error()
	}
	return strings.Join(strings.Fields(text), " ")
}

// Remedy says what to do about a failed connection; setting is what names the server, such as --database-url.
func Remedy(err error, setting string) string {
	var answer *pgconn.PgError
	if !errors.As(err, &answer) {
		return "start Postgres there, or correct host and port in " + setting
	}
	switch {
	case strings.HasPrefix(answer.Code, "28"):
		return "correct user and password in " + setting + ", or the server's pg_hba.conf"
	case answer.Code == "3D000":
		return "create the database, or correct its name in " + setting
	case answer.Code == "53300":
		return "raise the server's max_connections, or lower --database-conns of the processes"
	case strings.HasPrefix(answer.Code, "57P"):
		return "wait until the server has started, and try again"
	}
	return "see the server's log, or correct " + setting
}
