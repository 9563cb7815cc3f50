package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"

	"github.com/waybillhq/waybill/internal/devrun"
	"github.com/waybillhq/waybill/internal/procstat"
	"github.com/waybillhq/waybill/internal/producer"
)

// system is everything that is flooded.
type system struct {
	stack *devrun.Stack
	small [2]producer.Sender // over HTTP and gRPC
	stop  func() error
}

func startSystem(ctx context.Context, binary string) (*system, error) {
	dir, err := os.MkdirTemp("", "waybill-flood-")
	if err != nil {
		return nil, fmt.Errorf("scratch directory: %w", err)
	}
	// Postgres runs as another user, who must be able to pass through.
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, errors.Join(fmt.Errorf("scratch directory: %w", err), os.RemoveAll(dir))
	}
	c := devrun.DefaultConfig()
	c.Dir, c.Executable, c.FreePorts, c.Env = dir, binary, true, os.Environ()
	c.Say = func(line string) { fmt.Fprintln(os.Stderr, line) }
	stack, err := devrun.New(c)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := stack.Start(ctx); err != nil {
		return nil, errors.Join(err, stack.Remove(), os.RemoveAll(dir))
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	ran := make(chan struct{})
	go func() { defer close(ran); stack.Run(running) }()
	s := &system{stack: stack}
	s.stop = sync.OnceValue(func() error {
		stop()
		<-ran
		return errors.Join(stack.Stop(), stack.Remove(), os.RemoveAll(dir))
	})
	if err := s.connect(); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

func (s *system) connect() error {
	var err error
	if s.small[0], err = producer.NewHTTP(s.stack.HTTP[0], false); err != nil {
		return err
	}
	s.small[1], err = producer.NewGRPC(s.stack.GRPC[0], false, false)
	return err
}

// sendSmall sends a small event until it is accepted.
func (s *system) sendSmall(ctx context.Context, i int) error {
	ce := &pb.CloudEvent{
		Id: fmt.Sprintf("%d-%d", time.Now().UnixNano(), i), Source: "/small", SpecVersion: "1.0", Type: "small",
	}
	deadline, _ := ctx.Deadline()
	return producer.SendUntil(ctx, s.small[i%2], []*pb.CloudEvent{ce}, time.Until(deadline), nil)[0].Err
}

// peakMiB is the most that ingest has had resident.
func (s *system) peakMiB() (int, error) {
	for _, part := range s.stack.Parts() {
		if part.Name == "ingest-1" {
			m, err := procstat.ReadMemory(part.PID)
			return int((m.Peak + 1<<20 - 1) >> 20), err
		}
	}
	return 0, errors.New("ingest-1 does not run")
}

// slowCommitsSQL makes each commit that brings events take a second.
const slowCommitsSQL = `
	CREATE FUNCTION public.slow_commit() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		IF current_setting('flood.slept', true) IS DISTINCT FROM txid_current()::text THEN
			PERFORM set_config('flood.slept', txid_current()::text, true);
			PERFORM pg_sleep(1);
		END IF;
		RETURN NULL;
	END $$;
	CREATE CONSTRAINT TRIGGER slow_commit AFTER INSERT ON waybill.batches
		DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.slow_commit();`

func (s *system) slowCommits(ctx context.Context) error {
	return s.withPostgres(ctx, func(conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, slowCommitsSQL)
		return err
	})
}

func (s *system) withPostgres(ctx context.Context, do func(*pgx.Conn) error) error {
	conn, err := pgx.Connect(ctx, s.stack.DatabaseURL)
	if err != nil {
		return fmt.Errorf("connect to Postgres: %w", err)
	}
	return errors.Join(do(conn), conn.Close(ctx))
}

// checkStored compares what was accepted with the numbers that Postgres gave out, by source.
func (s *system) checkStored(ctx context.Context, wave string, r *result) error {
	return s.withPostgres(ctx, func(conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, `SELECT source, seqnum FROM waybill.key_heads WHERE source LIKE $1`, "/flood/"+wave+"/%")
		if err != nil {
			return err
		}
		stored := map[string]int{}
		var source string
		var seqnum int
		if _, err := pgx.ForEachRow(rows, []any{&source, &seqnum}, func() error { stored[source] = seqnum; return nil }); err != nil {
			return err
		}
		var failures []error
		for source, calls := range r.bySource {
			if want := calls * eventsOfCall; stored[source] < want {
				failures = append(failures, fmt.Errorf("%s: %d events were accepted and %d are stored", source, want, stored[source]))
			}
		}
		for source, n := range stored {
			if want := r.bySource[source] * eventsOfCall; n > want && !r.unknown[source] {
				failures = append(failures, fmt.Errorf("%s: %d events are stored and %d were accepted", source, n, want))
			}
		}
		return errors.Join(failures...)
	})
}
