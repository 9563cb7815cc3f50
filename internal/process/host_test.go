package process

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/waybillhq/waybill/internal/devstack"
	"github.com/waybillhq/waybill/pipeline"
)

// What runs inside another program takes no setting from the environment, logs where that wants it, and tells it its
// addresses and its health.
func TestProcessInsideAnother(t *testing.T) {
	t.Setenv("WAYBILL_INGRESS_ENDPOINT", "elsewhere:1")
	t.Setenv("WAYBILL_S3_PREFIX", "elsewhere")
	t.Setenv("OTEL_TRACES_EXPORTER", "nonsense")
	server, err := devstack.StartNATS(devstack.DefaultNATSOptions(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	forwarder := &Forwarder{}
	err = Configure(forwarder, "--nats-url="+server.URL(), "--admin-addr=127.0.0.1:0", "--s3-bucket=b", "--s3-endpoint=http://127.0.0.1:1",
		"--s3-access-key=a", "--s3-secret-key=s")
	if err != nil {
		t.Fatal(err)
	}
	if forwarder.IngressEndpoint != "" || forwarder.S3Prefix != DefaultS3().S3Prefix || forwarder.InFlight != pipeline.DefaultForwarderConfig().InFlight {
		t.Errorf("%+v", forwarder)
	}
	var log bytes.Buffer
	running := make(chan Running, 1)
	tuned := false
	forwarder.Host = &Host{
		Log: slog.New(slog.NewTextHandler(&log, nil)), Getenv: func(string) string { return "" },
		Running:   func(r Running) { running <- r },
		Forwarder: func(c *pipeline.ForwarderConfig) { tuned, c.RebalanceEvery = true, time.Minute },
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- forwarder.Run(ctx) }()
	var r Running
	select {
	case r = <-running:
	case err := <-ended:
		t.Fatalf("it ended: %v", err)
	}
	if conn, err := net.Dial("tcp", r.AdminAddr); err != nil {
		t.Error(err)
	} else {
		_ = conn.Close()
	}
	if health := r.Readiness(); health.Ready || len(health.Problems) == 0 || health.Problems[0].Check != "queue" {
		t.Errorf("without streams it says %+v", health)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if !tuned || !strings.Contains(log.String(), `msg="forwarder runs" process=forwarder`) {
		t.Errorf("tuned: %v; the log:\n%s", tuned, &log)
	}
}
