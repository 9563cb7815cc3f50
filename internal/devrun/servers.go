package devrun

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"

	"github.com/waybillhq/waybill/internal/devstack"
	"github.com/waybillhq/waybill/internal/supervisor"
)

// bucket is the archive's in the stack's own S3 server.
const bucket = "waybill"

// postgresPart is a private cluster as a part that can be started again.
type postgresPart struct {
	options devstack.PostgresOptions
	server  *devstack.Postgres // nil before the first successful start
}

var _ supervisor.Part = (*postgresPart)(nil)

func (p *postgresPart) Start(ctx context.Context) (int, error) {
	if p.server != nil {
		err := p.server.Start(ctx)
		return p.server.PID(), err
	}
	server, err := devstack.StartPostgres(ctx, p.options)
	if errors.Is(err, devstack.ErrNoPostgres) {
		err = fmt.Errorf("%w, or name a server with --database-url", err)
	}
	if err != nil {
		return 0, err
	}
	p.server = server
	return server.PID(), nil
}

func (p *postgresPart) Done() <-chan struct{} { return p.server.Done() }

func (p *postgresPart) Why() string { return "its log is " + p.server.LogPath() }

func (p *postgresPart) Stop() error { return p.server.Stop() }

// s3Part is the S3 server as a part that can be started again.
type s3Part struct {
	options devstack.S3Options
	server  *devstack.S3 // of the newest successful start
}

var _ supervisor.Part = (*s3Part)(nil)

func (p *s3Part) Start(ctx context.Context) (int, error) {
	server, err := devstack.StartS3(ctx, p.options)
	if err != nil {
		return 0, err
	}
	p.server = server
	return server.Process().PID(), nil
}

func (p *s3Part) Done() <-chan struct{} { return p.server.Process().Done() }

func (p *s3Part) Why() string { return p.server.Process().Err().Error() }

func (p *s3Part) Stop() error { return p.server.Stop() }

// addPostgres adds a private cluster, unless there is an existing server.
func (s *Stack) addPostgres() error {
	if s.config.DatabaseURL != "" {
		s.DatabaseURL = s.config.DatabaseURL
		return nil
	}
	options := devstack.DefaultPostgresOptions(filepath.Join(s.config.Dir, "postgres"))
	options.Env = s.envOf("postgres")
	options.LogPath = filepath.Join(s.config.Dir, "logs", "postgres.log") // beside the others
	var err error
	if options.Port, err = s.ports.port("postgres"); err != nil {
		return err
	}
	s.postgres = &postgresPart{options: options}
	s.add(&s.servers, "postgres", "127.0.0.1:"+strconv.Itoa(options.Port), s.postgres)
	return nil
}

// addNATS adds a nats-server as a process of its own, unless there is an existing one.
func (s *Stack) addNATS() error {
	if s.config.NATSURL != "" {
		s.NATSURL = s.config.NATSURL
		return nil
	}
	if s.config.NATSServers > 1 {
		return s.addNATSCluster()
	}
	port, err := s.ports.port("nats")
	if err != nil {
		return err
	}
	httpPort, err := s.ports.port("nats-http")
	if err != nil {
		return err
	}
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	s.NATSURL = "nats://" + addr
	command := s.command("nats-server", nil, "nats-server", "--dir", filepath.Join(s.config.Dir, "nats"),
		"--port", strconv.Itoa(port), "--http-port", strconv.Itoa(httpPort))
	command.Ready = devstack.HTTPReady(fmt.Sprintf("http://127.0.0.1:%d/healthz", httpPort))
	s.add(&s.servers, "nats-server", addr, supervisor.NewProcess(command))
	return nil
}

// addS3 adds an S3 server, unless there is an existing one, or no archive: then Stack.S3 has no
// bucket.
func (s *Stack) addS3() error {
	if s.config.WithoutArchive {
		s.S3.S3Bucket = ""
		return nil
	}
	s.S3 = s.config.S3
	if s.S3.S3Bucket == "" {
		s.S3.S3Bucket = bucket
	}
	if s.S3.S3Endpoint != "" {
		return nil
	}
	addr, err := s.ports.addr("s3")
	if err != nil {
		return err
	}
	s.S3.S3Endpoint, s.S3.S3AccessKey, s.S3.S3SecretKey = "http://"+addr, "waybill", "waybill-secret"
	s.S3.S3Region, s.S3.S3PathStyle = "us-east-1", true
	s.ownS3 = true
	s.add(&s.servers, "s3", addr, &s3Part{options: devstack.S3Options{
		Dir: filepath.Join(s.config.Dir, "s3"), Addr: addr,
		AccessKey: s.S3.S3AccessKey, SecretKey: s.S3.S3SecretKey, Log: sayWriter(s.config.Say),
	}})
	return nil
}

// addEndpoint adds a receiving endpoint, unless there is an existing one.
func (s *Stack) addEndpoint() error {
	if s.config.IngressEndpoint != "" {
		s.IngressEndpoint, s.EndpointAdmin = s.config.IngressEndpoint, s.config.EndpointAdmin
		return nil
	}
	addr, err := s.ports.addr("endpoint")
	if err != nil {
		return err
	}
	admin, err := s.ports.addr("endpoint-admin")
	if err != nil {
		return err
	}
	s.IngressEndpoint, s.EndpointAdmin = addr, "http://"+admin
	command := s.command("endpoint", map[string]string{
		"WAYBILL_ENDPOINT_ADDR": addr, "WAYBILL_ENDPOINT_ADMIN_ADDR": admin,
	}, "endpoint")
	command.Ready = devstack.HTTPReady("http://" + admin + "/livez")
	s.add(&s.servers, "endpoint", addr+", admin "+admin, supervisor.NewProcess(command))
	return nil
}
