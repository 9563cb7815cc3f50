package devstack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// natsBindAttempts is how often a port that the previous server had is asked for again:
// the kernel, or somebody with a random port, may hold it for a moment.
const natsBindAttempts = 20

// NATSOptions say how a nats-server with JetStream is started. Take them from
// DefaultNATSOptions.
type NATSOptions struct {
	// Dir holds JetStream's files. A later start on it goes on where it was.
	Dir string
	// Port of 127.0.0.1 for clients; 0: a free one.
	Port int
	// HTTPPort of 127.0.0.1 serves nats-server's own monitoring; 0: none.
	HTTPPort int
	// ServerName is how the server names itself.
	ServerName string
	// ClusterPort of 127.0.0.1 is for the other servers of a cluster, and Routes are host:port of
	// these; 0 and none: the server is alone. JetStream wants the names of all to differ.
	ClusterPort int
	Routes      []string
	// MaxPayload is the largest message, bytes.
	MaxPayload int32
	// MaxStore is how much JetStream may store on disk, bytes.
	MaxStore int64
	// SyncInterval is how often JetStream's files are flushed to the disk. SyncAlways
	// flushes them before each acknowledgement instead.
	SyncInterval time.Duration
	SyncAlways   bool
	// StartTimeout bounds one start, the recovery of the store included.
	StartTimeout time.Duration
	// Logger receives what the server logs; nil: nobody.
	Logger *slog.Logger
}

// DefaultNATSOptions are a server in dir on a free port, with messages up to 8 MiB, a
// store of 10 GiB and nats-server's own flush interval of two minutes.
func DefaultNATSOptions(dir string) NATSOptions {
	return NATSOptions{
		Dir: dir, ServerName: "waybill",
		MaxPayload: 8 << 20, MaxStore: 10 << 30,
		SyncInterval: 2 * time.Minute, StartTimeout: time.Minute,
	}
}

// Validate names the first field that cannot work.
func (o NATSOptions) Validate() error {
	switch {
	case o.Dir == "":
		return errors.New("NATSOptions.Dir is empty: name a directory for JetStream's files")
	case o.Port < 0 || o.Port > 65535:
		return fmt.Errorf("NATSOptions.Port is %d: want 1 to 65535, or 0 for a free one", o.Port)
	case o.HTTPPort < 0 || o.HTTPPort > 65535:
		return fmt.Errorf("NATSOptions.HTTPPort is %d: want 1 to 65535, or 0 for none", o.HTTPPort)
	case o.ClusterPort < 0 || o.ClusterPort > 65535:
		return fmt.Errorf("NATSOptions.ClusterPort is %d: want 1 to 65535, or 0 for a server alone", o.ClusterPort)
	case (o.ClusterPort == 0) != (len(o.Routes) == 0):
		return errors.New("NATSOptions.ClusterPort and Routes belong together: set both, or none for a server alone")
	case o.ServerName == "":
		return errors.New("NATSOptions.ServerName is empty: give the server a name")
	case o.MaxPayload <= 0:
		return fmt.Errorf("NATSOptions.MaxPayload is %d: want a number of bytes above 0", o.MaxPayload)
	case o.MaxStore <= 0:
		return fmt.Errorf("NATSOptions.MaxStore is %d: want a number of bytes above 0", o.MaxStore)
	case o.SyncInterval <= 0:
		return fmt.Errorf("NATSOptions.SyncInterval is %s: want more than 0", o.SyncInterval)
	case o.StartTimeout <= 0:
		return fmt.Errorf("NATSOptions.StartTimeout is %s: want more than 0", o.StartTimeout)
	}
	return nil
}

// NATS is a nats-server inside this process. It is not for use by several goroutines at
// once, except URL.
type NATS struct {
	options NATSOptions
	port    int
	server  *server.Server // nil while stopped
}

// StartNATS starts a server inside this process and waits until it takes connections.
func StartNATS(options NATSOptions) (*NATS, error) {
	if err := options.Validate(); err != nil {
		return nil, err
	}
	n := &NATS{options: options, port: options.Port}
	if err := n.Start(); err != nil {
		return nil, err
	}
	return n, nil
}

// RunNATSServer runs a server inside this process until ctx ends: what the process that
// `waybill dev` starts for it does.
func RunNATSServer(ctx context.Context, options NATSOptions) error {
	n, err := StartNATS(options)
	if err != nil {
		return err
	}
	<-ctx.Done()
	n.Stop()
	return nil
}

// Start starts a stopped server again, on the port and the files that it had.
func (n *NATS) Start() error {
	if n.server != nil {
		return errors.New("start NATS: it runs already")
	}
	var err error
	for range natsBindAttempts {
		if err = n.startOnce(); err == nil || !errors.Is(err, errPortTaken) {
			return err
		}
		time.Sleep(orphansPause)
	}
	return err
}

func (n *NATS) startOnce() error {
	if err := os.MkdirAll(n.options.Dir, 0o755); err != nil {
		return fmt.Errorf("start NATS: %w", err)
	}
	if n.port != 0 {
		if err := mayListen(n.port); err != nil {
			return err
		}
	}
	s, err := server.NewServer(n.serverOptions())
	if err != nil {
		return fmt.Errorf("start NATS: %w", err)
	}
	log := newNATSLog(n.options.Logger)
	s.SetLoggerV2(log, false, false, false)
	s.Start()
	if err := awaitNATS(s, log, n.options.StartTimeout); err != nil {
		s.Shutdown()
		s.WaitForShutdown()
		return fmt.Errorf("start NATS in %s: %w", n.options.Dir, err)
	}
	n.server = s
	n.port = s.Addr().(*net.TCPAddr).Port
	return nil
}

// awaitNATS waits until the server takes connections, and no longer once it has logged
// a fatal error: it would never become ready, nor end.
func awaitNATS(s *server.Server, log *natsLog, timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	for time.Now().Before(deadline) && log.fatal.Load() == nil {
		if s.ReadyForConnections(readyPoll) && s.JetStreamEnabled() {
			return nil
		}
	}
	if text := log.fatal.Load(); text != nil {
		return errors.New(*text)
	}
	return fmt.Errorf("not ready in %s", timeout)
}

func (n *NATS) serverOptions() *server.Options {
	o := &server.Options{
		ServerName: n.options.ServerName,
		Host:       "127.0.0.1", Port: n.port,
		MaxPayload: n.options.MaxPayload,
		JetStream:  true, StoreDir: n.options.Dir, DisableJetStreamBanner: true,
		JetStreamMaxStore:  n.options.MaxStore,
		JetStreamMaxMemory: 256 << 20, // nothing of Waybill's is stored in memory
		SyncInterval:       n.options.SyncInterval, SyncAlways: n.options.SyncAlways,
		NoSigs: true, // signals are the program's
	}
	if n.port == 0 {
		o.Port = server.RANDOM_PORT
	}
	if n.options.ClusterPort != 0 {
		n.join(o)
	}
	if n.options.HTTPPort != 0 {
		o.HTTPHost, o.HTTPPort = "127.0.0.1", n.options.HTTPPort
	}
	return o
}

// clusterName is that of every cluster; the routes keep them apart.
const clusterName = "waybill"

// join makes the server one of a cluster. It tells nobody of the others: clients and servers
// reach each only by the addresses that they were given.
func (n *NATS) join(o *server.Options) {
	o.Cluster = server.ClusterOpts{
		Name: clusterName, Host: "127.0.0.1", Port: n.options.ClusterPort,
		NoAdvertise: true, Advertise: nowhere,
	}
	for _, addr := range n.options.Routes {
		o.Routes = append(o.Routes, &url.URL{Scheme: "nats-route", Host: addr})
	}
}

// nowhere is where a server of a cluster says that others could reach it.
const nowhere = "127.0.0.1:1"

var errPortTaken = errors.New("the port is taken")

// mayListen finds out whether a port is free: nats-server only logs that it is not, and
// then waits for ever.
func mayListen(port int) error {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return fmt.Errorf("start NATS: %w: %w", errPortTaken, err)
	}
	return l.Close()
}

// URL is where clients connect; it stays the same over restarts.
func (n *NATS) URL() string { return "nats://127.0.0.1:" + strconv.Itoa(n.port) }

// Stop shuts the server down and waits for its end. A stopped server stays stopped.
func (n *NATS) Stop() {
	if n.server == nil {
		return
	}
	n.server.Shutdown()
	n.server.WaitForShutdown()
	n.server = nil
}

// Dir is the directory of its files.
func (n *NATS) Dir() string { return n.options.Dir }

// Restart stops the server and starts it again on the same port and files.
func (n *NATS) Restart() error {
	n.Stop()
	return n.Start()
}

// WipeStore deletes everything that JetStream stored, streams and consumers included.
// The server must be stopped.
func (n *NATS) WipeStore() error {
	if n.server != nil {
		return errors.New("wipe JetStream's files: the server runs: stop it first")
	}
	if err := os.RemoveAll(filepath.Join(n.options.Dir, "jetstream")); err != nil {
		return fmt.Errorf("wipe JetStream's files: %w", err)
	}
	return nil
}
