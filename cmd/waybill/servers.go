package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/nats-io/nats.go"

	"github.com/waybillhq/waybill/internal/process"
	"github.com/waybillhq/waybill/pipeline"
)

// lookTimeout bounds how long a command that only looks waits for a server.
const lookTimeout = 5 * time.Second

// openStore opens the database for one command.
func openStore(ctx context.Context, url string, lanes int) (*pipeline.Store, error) {
	config := pipeline.DefaultStoreConfig(url)
	config.MaxConns = 2
	store, err := pipeline.OpenStore(ctx, config, lanes)
	if errors.Is(err, pipeline.ErrUnavailable) && ctx.Err() == nil {
		err = fmt.Errorf("%w; --database-url (WAYBILL_DATABASE_URL) is %s: correct it, or start Postgres", err, redactedURL(url))
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
		return nil, nil, err
	}
	if err := awaitNATS(ctx, nc, wait); err != nil {
		nc.Close()
		if ctx.Err() == nil {
			err = fmt.Errorf("%w; --nats-url (WAYBILL_NATS_URL) is %s: correct it, or start the server", err, redactedURLs(servers.NATSURL))
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
			return fmt.Errorf("NATS does not answer within %v", wait)
		}
		pause(ctx, 50*time.Millisecond)
	}
	return nil
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
