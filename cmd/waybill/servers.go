package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/nats-io/nats.go"

	"github.com/waybillhq/waybill/internal/netfault"
	"github.com/waybillhq/waybill/internal/pgconnect"
	"github.com/waybillhq/waybill/internal/process"
	"github.com/waybillhq/waybill/pipeline"
)

// lookTimeout bounds how long a command that only looks waits for a server.
const lookTimeout = 5 * time.Second

// What names the servers, in errors.
const (
	databaseSetting = "--database-url (WAYBILL_DATABASE_URL)"
	natsSetting     = "--nats-url (WAYBILL_NATS_URL)"
)

// serverError is about a server that does not answer, or does not let anybody in.
type serverError struct {
	error
	away bool // it does not answer
}

func (e serverError) Unwrap() error { return e.error }

// Away reports that no server answered.
func (e serverError) Away() bool { return e.away }

// aboutServer reports that an error is about a server that could not be used, and whether that did not even answer.
func aboutServer(err error) (about, away bool) {
	var server interface{ Away() bool } // serverError, or what package pgconnect or s3fault says
	if !errors.As(err, &server) {
		return false, false
	}
	return true, server.Away()
}

// openStore opens the database for one command.
func openStore(ctx context.Context, url string, lanes int) (*pipeline.Store, error) {
	config := pipeline.DefaultStoreConfig(url)
	config.MaxConns = 2
	store, err := pipeline.OpenStore(ctx, config, lanes)
	if ctx.Err() != nil {
		return store, err
	}
	err = pgconnect.Explain(err, databaseSetting)
	if about, _ := aboutServer(err); errors.Is(err, pipeline.ErrUnavailable) && !about {
		err = serverError{error: fmt.Errorf("%w; %s is %s: correct it, or see the server's log", err, databaseSetting, redactedURL(url))}
	}
	return store, err
}

// connectQueue waits until the NATS server answers, up to wait.
func connectQueue(ctx context.Context, servers process.NATS, wait time.Duration) (*pipeline.Queue, *nats.Conn, error) {
	var options []nats.Option
	if servers.NATSCreds != "" {
		options = append(options, nats.UserCredentials(servers.NATSCreds))
	}
	nc, err := pipeline.ConnectNATS(servers.NATSURL, "waybill", options...)
	if err != nil {
		return nil, nil, fmt.Errorf("%w; %s is %s, --nats-creds (WAYBILL_NATS_CREDS) %q: correct them", err, natsSetting, redactedNATS(servers.NATSURL), servers.NATSCreds)
	}
	if err := awaitNATS(ctx, nc, wait); err != nil {
		nc.Close()
		if reason := unreachedNATS(ctx, servers.NATSURL); ctx.Err() == nil && reason != "" {
			err = fmt.Errorf("NATS does not answer: %s", reason)
		}
		if ctx.Err() == nil {
			remedy, away := "correct it, or start the server", true
			if errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) || errors.Is(err, nats.ErrAuthRevoked) {
				remedy, away = "correct the user and the password or the token in it, or give --nats-creds (WAYBILL_NATS_CREDS)", false
			}
			err = serverError{fmt.Errorf("%w; %s is %s: %s", err, natsSetting, redactedNATS(servers.NATSURL), remedy), away}
		}
		return nil, nil, err
	}
	queue, err := pipeline.NewQueue(nc)
	if err != nil {
		nc.Close()
		return nil, nil, err
	}
	return queue, nc, nil
}

func awaitNATS(ctx context.Context, nc *nats.Conn, wait time.Duration) error {
	deadline := time.Now().Add(wait)
	for !nc.IsConnected() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(deadline) {
			if err := nc.LastError(); err != nil {
				return fmt.Errorf("NATS does not answer: %w", err)
			}
			return fmt.Errorf("NATS does not answer within %v", max(wait, 0).Round(time.Millisecond))
		}
		pause(ctx, 50*time.Millisecond)
	}
	return nil
}

// unreachedNATS is why no server can be connected to, which the client keeps to itself while it tries again; empty: one
// can, or that is not known.
func unreachedNATS(ctx context.Context, servers string) string {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var reasons []string
	for server := range strings.SplitSeq(servers, ",") {
		_, address, found := strings.Cut(strings.TrimSpace(server), "://")
		if !found {
			address = strings.TrimSpace(server)
		}
		address = address[strings.LastIndex(address, "@")+1:]
		if _, _, err := net.SplitHostPort(address); err != nil {
			address = net.JoinHostPort(strings.Trim(address, "[]/"), strconv.Itoa(nats.DefaultPort))
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err == nil {
			_ = conn.Close() // nothing was sent
			return ""
		}
		if reason, ok := netfault.Reason(err); ok && !slices.Contains(reasons, reason) {
			reasons = append(reasons, reason)
		}
	}
	return strings.Join(reasons, "; ")
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// plural is n and a word that ends in s unless n is 1.
func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}

// oneLine keeps a text from breaking a table, and from steering the terminal: producers may put anything
// into the names of their events.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, strings.Join(strings.Fields(text), " "))
}
