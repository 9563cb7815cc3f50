package waybilltest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/waybillhq/waybill/internal/cli"
	"github.com/waybillhq/waybill/internal/process"
	"github.com/waybillhq/waybill/internal/producer"
	"github.com/waybillhq/waybill/pipeline"
)

const (
	// queueBytes is the size of the stream EVENTS, and receiptBytes of RECEIPTS.
	queueBytes   = 256 << 20
	receiptBytes = 64 << 20
	// dedupeBytes is ingest's memory of accepted events: some 60,000.
	dedupeBytes = 1 << 20
	// readyPoll is the pause between looks at whether the processes are ready.
	readyPoll = 5 * time.Millisecond
	// often is the pause of whatever a process does now and then: a test waits for it.
	often = 100 * time.Millisecond
)

func queueConfig() pipeline.QueueConfig {
	c := pipeline.DefaultQueueConfig()
	c.MaxBytes, c.MaxReceiptBytes = queueBytes, receiptBytes
	return c
}

// loopback is any free port.
const loopback = "127.0.0.1:0"

// startProcesses starts a janitor, which ingest looks for, and then the others.
func (w *Waybill) startProcesses(ctx context.Context) error {
	janitor := &process.Janitor{}
	forwarder := &process.Forwarder{}
	ingest := &process.Ingest{}
	common := []string{"--id=waybilltest", "--admin-addr=" + loopback, "--nats-url=" + w.NATSURL, "--lanes=" + strconv.Itoa(w.Lanes), "--memory-limit=0"}
	database := append([]string{"--database-url=" + w.DatabaseURL, "--database-conns=4"}, common...)
	err := errors.Join(
		process.Configure(janitor, append([]string{"--queue-bytes=" + strconv.Itoa(queueBytes)}, database...)...),
		process.Configure(forwarder, append([]string{
			"--ingress-endpoint=" + w.endpoint.Addr(), "--archive-linger=" + archiveLinger.String(),
			"--expiry-margin=0s", "--stop-timeout=" + stopTimeout.String(), // there is one clock
		}, common...)...),
		process.Configure(ingest, append([]string{
			"--http-addr=" + loopback, "--grpc-addr=" + loopback, "--event-ttl=" + w.settings.eventTTL.String(),
			"--dedupe-attribute=" + w.settings.dedupeAttribute, "--dedupe-bytes=" + strconv.Itoa(dedupeBytes),
			"--stop-timeout=" + stopTimeout.String(),
		}, database...)...))
	if err != nil {
		return err
	}
	forwarder.S3 = w.Archive.settings()
	janitor.Host, forwarder.Host, ingest.Host = w.host(), w.host(), w.host()
	janitor.Host.Janitor, forwarder.Host.Forwarder = tuneJanitor, tuneForwarder
	for _, p := range []struct {
		name   string
		config cli.Runner
		host   *process.Host
	}{{pipeline.KindJanitor, janitor, janitor.Host}, {pipeline.KindForwarder, forwarder, forwarder.Host}, {pipeline.KindIngest, ingest, ingest.Host}} {
		running := make(chan process.Running, 1)
		p.host.Running = func(r process.Running) { running <- r }
		w.onStop(w.parts.run(p.name, p.config.Run))
		select {
		case r := <-running:
			w.parts.add(p.name, r.Readiness)
			if r.HTTPAddr != "" {
				w.HTTPURL, w.GRPCAddr = "http://"+r.HTTPAddr, r.GRPCAddr
			}
		case <-w.parts.failed:
			return w.parts.err()
		case <-ctx.Done():
			return fmt.Errorf("%s does not begin: %w", p.name, ctx.Err())
		}
	}
	if err := w.awaitReady(ctx); err != nil {
		return err
	}
	if w.sender, err = producer.NewGRPC(w.GRPCAddr, false, false); err != nil {
		return err
	}
	w.onStop(w.sender.Close)
	return nil
}

// host keeps the processes away from the environment of the test and from its standard error.
func (w *Waybill) host() *process.Host {
	return &process.Host{Log: w.settings.log, Getenv: func(string) string { return "" }}
}

// tuneJanitor makes short pauses of long ones.
func tuneJanitor(c *pipeline.JanitorConfig) {
	c.Queue = queueConfig()
	c.UpkeepEvery, c.RetransmitEvery, c.ExpireEvery = often, often, often
}

// tuneForwarder has a sink tried again soon: the outages of tests are short.
func tuneForwarder(c *pipeline.ForwarderConfig) {
	c.RebalanceEvery = often
	c.BackoffMin, c.BackoffMax = often/10, often
	c.BreakerMin, c.BreakerMax = often, often
}

// awaitReady waits until all processes say that they are ready.
func (w *Waybill) awaitReady(ctx context.Context) error {
	for {
		problems := w.parts.problems(true)
		if len(problems) == 0 {
			return nil
		}
		select {
		case <-w.parts.failed:
			return w.parts.err()
		case <-ctx.Done():
			return fmt.Errorf("not ready: %s", problems[0])
		case <-time.After(readyPoll):
		}
	}
}
