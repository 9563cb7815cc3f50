package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/internal/devrun"
	"github.com/waybillhq/waybill/internal/producer"
	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/sinks"
)

// archiveLinger is how long an object of the archive waits to be filled: short, so that what is
// pending is what the system could not do, and not what it waits for.
const archiveLinger = 500 * time.Millisecond

// system is everything that the workflows run against, and who looks at it.
type system struct {
	stack   *devrun.Stack
	store   *pipeline.Store // for what is pending
	conn    *pgx.Conn       // for what Postgres has counted
	archive *sinks.ArchiveReader
	// over HTTP and over gRPC; workflows take turns.
	senders [2]producer.Sender
	hangUp  []func()
}

// withSystem starts a system of its own, does something with it, and removes it.
func withSystem(ctx context.Context, binary string, do func(*system) error) (err error) {
	dir, err := os.MkdirTemp("", "waybill-cre-")
	if err != nil {
		return fmt.Errorf("scratch directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	// Postgres runs as another user, who must be able to pass through.
	if err := os.Chmod(dir, 0o755); err != nil {
		return fmt.Errorf("scratch directory: %w", err)
	}
	if binary == "" {
		if binary, err = build(ctx, dir); err != nil {
			return err
		}
	}
	c := devrun.DefaultConfig()
	c.Dir, c.Executable, c.FreePorts, c.Env = filepath.Join(dir, "stack"), binary, true, os.Environ()
	c.ArchiveLinger = archiveLinger
	c.Say = func(line string) { fmt.Fprintln(os.Stderr, line) }
	if err := os.Mkdir(c.Dir, 0o755); err != nil {
		return fmt.Errorf("scratch directory: %w", err)
	}
	stack, err := devrun.New(c)
	if err != nil {
		return err
	}
	if err := stack.Start(ctx); err != nil {
		return errors.Join(err, stack.Remove())
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	ran := make(chan struct{})
	go func() { defer close(ran); stack.Run(running) }()
	defer func() {
		stop()
		<-ran
		err = errors.Join(err, stack.Stop(), stack.Remove())
	}()
	s := &system{stack: stack}
	defer s.close()
	if err := s.connect(ctx); err != nil {
		return err
	}
	return do(s)
}

// build builds the waybill binary of this checkout.
func build(ctx context.Context, dir string) (string, error) {
	binary := filepath.Join(dir, "waybill")
	cmd := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-o", binary, "github.com/waybillhq/waybill/cmd/waybill")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build waybill: %w\n%s", err, out)
	}
	return binary, nil
}

func (s *system) connect(ctx context.Context) error {
	http, err := producer.NewHTTP(s.stack.HTTP[0], false)
	if err != nil {
		return err
	}
	grpc, err := producer.NewGRPC(s.stack.GRPC[0], false, false)
	if err != nil {
		return err
	}
	s.senders = [2]producer.Sender{grpc, http}
	s.hangUp = append(s.hangUp, http.Close, func() { _ = grpc.Close() }) // every answer has been read
	if s.store, err = s.stack.OpenStore(ctx); err != nil {
		return err
	}
	s.hangUp = append(s.hangUp, s.store.Close)
	if s.conn, err = pgx.Connect(ctx, s.stack.DatabaseURL); err != nil {
		return fmt.Errorf("connect to Postgres: %w", err)
	}
	s.hangUp = append(s.hangUp, func() { _ = s.conn.Close(context.WithoutCancel(ctx)) }) // it was read only
	s.archive, err = s.stack.S3.ArchiveReader(ctx)
	return err
}

func (s *system) close() {
	for _, hangUp := range s.hangUp {
		hangUp()
	}
}
