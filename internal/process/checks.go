package process

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/internal/cli"
	"github.com/waybillhq/waybill/pipeline"
)

// Checks are those of the tags want:"…" in this package's structs and in those of the commands.
func Checks() cli.Checks {
	return cli.Checks{
		"address":  checkListen,
		"file":     checkFile,
		"id":       pipeline.ValidateProcessID,
		"lane":     number(0, pipeline.MaxLanes-1),
		"lanes":    number(1, pipeline.MaxLanes),
		"nats":     checkNATS,
		"postgres": checkPostgres,

		"not-negative": checkNotNegative,
		"positive":     checkPositive,
	}
}

// checkPositive and checkNotNegative are of whole numbers and of times.
func checkPositive(value string) error {
	if sign(value) > 0 {
		return nil
	}
	return fmt.Errorf("%s; want more than 0", value)
}

func checkNotNegative(value string) error {
	if sign(value) >= 0 {
		return nil
	}
	return fmt.Errorf("%s; want 0 or more", value)
}

// sign is that of a number or a time, as the parser prints what it has read.
func sign(value string) int {
	switch {
	case strings.HasPrefix(value, "-"):
		return -1
	case strings.Trim(value, "0.hms") == "":
		return 0
	}
	return 1
}

// number wants one between two, both included.
func number(least, most int) cli.Check {
	return func(value string) error {
		if n, err := strconv.Atoi(value); err != nil || n < least || n > most {
			return fmt.Errorf("%s; want %d to %d", value, least, most)
		}
		return nil
	}
}

// checkListen reports an address that no server can listen on.
func checkListen(addr string) error {
	if _, err := net.ResolveTCPAddr("tcp", addr); err != nil {
		return fmt.Errorf("%q; want host:port, or :port for all addresses of this machine: %w", addr, err)
	}
	return nil
}

// checkFile reports a file that cannot be read.
func checkFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("%w; name a file that is there and that this user may read", err)
	}
	return f.Close()
}

const wantPostgres = "want postgres://user:password@host:port/database"

// checkPostgres does not say what it found, in which a password may be.
func checkPostgres(text string) error {
	if text == "" {
		return errors.New("is empty; " + wantPostgres)
	}
	_, err := pgx.ParseConfig(text)
	var file *fs.PathError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &file):
		return fmt.Errorf("names a file that cannot be read: %w", file)
	case !strings.Contains(text, "://"):
		return fmt.Errorf("is no URL, but a text of %d characters, which are not shown since a password may be among them; %s", len([]rune(text)), wantPostgres)
	}
	return errors.New("cannot be parsed; " + wantPostgres + ", with %XX for what is no letter or digit in a user or a password")
}

// checkNATS does not say what it found, in which a password or a token may be.
func checkNATS(text string) error {
	const want = "want nats://user:password@host:port, several with commas between them"
	if text == "" {
		return errors.New("is empty; " + want)
	}
	for part := range strings.SplitSeq(text, ",") {
		part = strings.TrimSpace(part)
		if !strings.Contains(part, "://") {
			part = "nats://" + part
		}
		u, err := url.Parse(part)
		if err != nil || u.Host == "" {
			return errors.New("has an address in it that cannot be parsed; " + want + ", with %XX for what is no letter or digit in a user or a password")
		}
		switch u.Scheme {
		case "nats", "tls", "ws", "wss":
		default:
			return fmt.Errorf("has the scheme %s://, which NATS does not have; %s", u.Scheme, want)
		}
	}
	return nil
}
