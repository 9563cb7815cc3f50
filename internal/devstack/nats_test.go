package devstack_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/internal/devstack"
)

func TestNATSKeepsAcrossARestart(t *testing.T) {
	n := mustNATS(t, devstack.DefaultNATSOptions(t.TempDir()))
	url := n.URL()
	js := mustJetStream(t, url)
	mustStore(t, js, make([]byte, 7<<20))
	if err := n.Restart(); err != nil {
		t.Fatal(err)
	}
	if n.URL() != url {
		t.Errorf("the address went from %s to %s", url, n.URL())
	}
	stream, err := mustJetStream(t, url).Stream(t.Context(), "S")
	if err != nil {
		t.Fatal(err)
	}
	if got := stream.CachedInfo().State.Msgs; got != 1 {
		t.Errorf("%d messages after the restart, want 1", got)
	}
}

func TestNATSWipe(t *testing.T) {
	n := mustNATS(t, devstack.DefaultNATSOptions(t.TempDir()))
	mustStore(t, mustJetStream(t, n.URL()), []byte("x"))
	if err := n.WipeStore(); err == nil {
		t.Error("a running server let its store be wiped")
	}
	if err := n.Start(); err == nil {
		t.Error("a running server was started again")
	}
	n.Stop()
	n.Stop()
	if err := n.WipeStore(); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := mustJetStream(t, n.URL()).Stream(t.Context(), "S"); err == nil {
		t.Error("the stream outlived the wipe")
	}
}

func TestNATSSaysWhyItDoesNotStart(t *testing.T) {
	n := mustNATS(t, devstack.DefaultNATSOptions(t.TempDir()))
	var port int
	if _, err := fmt.Sscanf(n.URL(), "nats://127.0.0.1:%d", &port); err != nil {
		t.Fatal(err)
	}
	taken := devstack.DefaultNATSOptions(t.TempDir())
	taken.Port = port
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	broken := devstack.DefaultNATSOptions(t.TempDir())
	if err := os.WriteFile(filepath.Join(broken.Dir, "jetstream"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		o    devstack.NATSOptions
		want string
	}{
		"port":   {taken, "taken"},
		"dir":    {devstack.DefaultNATSOptions(file), "not a directory"},
		"broken": {broken, "storage directory is not a directory"},
		"empty":  {devstack.NATSOptions{}, "NATSOptions.Dir"},
	} {
		t.Run(name, func(t *testing.T) {
			begun := time.Now()
			_, err := devstack.StartNATS(c.o)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q in it", err, c.want)
			}
			if took := time.Since(begun); took > c.o.StartTimeout/2 && c.o.StartTimeout > 0 {
				t.Errorf("took %s to say so", took)
			}
		})
	}
}

func TestRunNATSServerEndsWithItsContext(t *testing.T) {
	o := devstack.DefaultNATSOptions(t.TempDir())
	port, err := devstack.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	httpPort, err := devstack.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	o.Port, o.HTTPPort = port, httpPort
	o.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- devstack.RunNATSServer(ctx, o) }()
	healthy := devstack.HTTPReady(fmt.Sprintf("http://127.0.0.1:%d/healthz", httpPort))
	await(t, "the server's health", func() bool { return healthy(ctx) == nil })
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it did not end")
	}
	if devstack.TCPReady(fmt.Sprintf("127.0.0.1:%d", port))(t.Context()) == nil {
		t.Error("somebody still listens")
	}
}

func TestNATSServersFormACluster(t *testing.T) {
	var options []devstack.NATSOptions
	for i := range 3 {
		o := devstack.DefaultNATSOptions(t.TempDir())
		o.ServerName = fmt.Sprintf("nats-%d", i+1)
		var err error
		if o.ClusterPort, err = devstack.FreePort(); err != nil {
			t.Fatal(err)
		}
		options = append(options, o)
	}
	for i := range options {
		for j := range options {
			if i != j {
				options[i].Routes = append(options[i].Routes, fmt.Sprintf("127.0.0.1:%d", options[j].ClusterPort))
			}
		}
	}
	var servers []*devstack.NATS
	for _, o := range options {
		servers = append(servers, mustNATS(t, o))
	}
	nc, err := nats.Connect(servers[0].URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	var stream jetstream.Stream
	await(t, "a stream of three replicas", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		stream, err = js.CreateStream(ctx, jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Replicas: 3})
		return err == nil
	})
	if c := stream.CachedInfo().Cluster; c == nil || len(c.Replicas) != 2 {
		t.Errorf("the stream's group is %+v", c)
	}
	if known := nc.DiscoveredServers(); len(known) > 0 {
		t.Errorf("clients are told of %v, past what stands before them", known)
	}
}

func TestNATSOptionsNameWhatIsWrong(t *testing.T) {
	for want, change := range map[string]func(*devstack.NATSOptions){
		"Port":         func(o *devstack.NATSOptions) { o.Port = -1 },
		"HTTPPort":     func(o *devstack.NATSOptions) { o.HTTPPort = 70000 },
		"ClusterPort":  func(o *devstack.NATSOptions) { o.ClusterPort = 4248 }, // without routes
		"ServerName":   func(o *devstack.NATSOptions) { o.ServerName = "" },
		"MaxPayload":   func(o *devstack.NATSOptions) { o.MaxPayload = 0 },
		"MaxStore":     func(o *devstack.NATSOptions) { o.MaxStore = 0 },
		"SyncInterval": func(o *devstack.NATSOptions) { o.SyncInterval = 0 },
		"StartTimeout": func(o *devstack.NATSOptions) { o.StartTimeout = 0 },
	} {
		o := devstack.DefaultNATSOptions(t.TempDir())
		change(&o)
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), "NATSOptions."+want) {
			t.Errorf("error %v, want the field %s in it", err, want)
		}
	}
}

func mustNATS(t *testing.T, o devstack.NATSOptions) *devstack.NATS {
	t.Helper()
	n, err := devstack.StartNATS(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Stop)
	return n
}

func mustJetStream(t *testing.T, url string) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func mustStore(t *testing.T, js jetstream.JetStream, data []byte) {
	t.Helper()
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "s", data); err != nil {
		t.Fatal(err)
	}
}
