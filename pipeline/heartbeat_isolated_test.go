package pipeline

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// A server that is cut off from its cluster keeps its clients and can store nothing for them.
func TestProcessLeavesAServerThatIsCutOff(t *testing.T) {
	deaf, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	deaf.Start()
	t.Cleanup(func() { deaf.Shutdown(); deaf.WaitForShutdown() })
	if !deaf.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server does not start")
	}
	whole := mustNATS(t)
	direct, _ := mustQueue(t, whole)
	if err := direct.ensureStreams(t.Context(), testJanitorConfig().Queue, testSpec.Lanes); err != nil {
		t.Fatal(err)
	}
	nc, err := ConnectNATS(deaf.ClientURL()+","+whole.URL(), t.Name(), nats.DontRandomize())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	queue, err := NewQueue(nc)
	if err != nil {
		t.Fatal(err)
	}
	mustRun(t, func(ctx context.Context) error {
		return runHeartbeat(ctx, queue, testLog(t), func() Heartbeat { return NewHeartbeat(KindIngest, "a", "test") }, time.Second)
	})
	eventually(t, patience, "the heartbeat is stored by the other server", func() bool {
		live, err := LiveProcesses(t.Context(), direct, KindIngest)
		return err == nil && len(live) == 1
	})
}
