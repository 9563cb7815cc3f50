package devstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// s3PortAttempts is how often a free port may be lost to somebody else between finding it
// and listening on it (the server has no port 0).
const s3PortAttempts = 5

// S3Options say how StartS3 starts the server.
type S3Options struct {
	// Dir holds the objects, their metadata and the server's log. A later start on
	// the same directory finds what an earlier one stored.
	Dir string
	// Addr is the host:port to listen on; empty: a free port of 127.0.0.1.
	Addr string
	// Binary is the versitygw to run; empty: see FindVersitygw.
	Binary string
	// AccessKey and SecretKey are the root credentials; both empty: "waybill" and
	// "waybill-secret".
	AccessKey, SecretKey string
	// Log receives a line for what takes long (building the server); nil: nobody.
	Log io.Writer
}

// S3 is a running S3 server for development and tests: versitygw over a directory, as a
// process of its own that ends with the process that started it. It does not fsync, so it
// is not for data that must survive the machine.
type S3 struct {
	Endpoint  string // http://host:port
	AccessKey string
	SecretKey string
	Region    string

	process *Process
	client  *s3.Client
}

// StartS3 starts the server and waits until it answers. ctx bounds the start, not the
// server's life: that ends with Stop.
func StartS3(ctx context.Context, o S3Options) (*S3, error) {
	if o.Dir == "" {
		return nil, errors.New("S3 server: Dir is empty; name a directory for its objects")
	}
	if o.AccessKey == "" && o.SecretKey == "" {
		o.AccessKey, o.SecretKey = "waybill", "waybill-secret"
	}
	binary, err := FindVersitygw(ctx, o.Binary, o.Log)
	if err != nil {
		return nil, err
	}
	o.Binary = binary
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, fmt.Errorf("S3 server: %w", err)
	}
	if o.Addr != "" {
		return startS3At(ctx, o)
	}
	return startS3Anywhere(ctx, o)
}

// startS3Anywhere starts the server on a free port, and on another one if that was
// taken in the meantime.
func startS3Anywhere(ctx context.Context, o S3Options) (*S3, error) {
	var errs error
	for range s3PortAttempts {
		port, err := FreePort()
		if err != nil {
			return nil, err
		}
		o.Addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		server, err := startS3At(ctx, o)
		if err == nil {
			return server, nil
		}
		errs = errors.Join(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errs
}

func startS3At(ctx context.Context, o S3Options) (*S3, error) {
	args, err := versitygwArgs(o)
	if err != nil {
		return nil, err
	}
	server := &S3{
		Endpoint: "http://" + o.Addr, AccessKey: o.AccessKey, SecretKey: o.SecretKey,
		Region: "us-east-1",
	}
	server.client = server.newClient()
	command := DefaultCommand("S3 server at "+o.Addr, o.Binary, args...)
	command.Dir = o.Dir
	// The credentials go by the environment: arguments are readable by every user.
	command.Env = append(os.Environ(), "ROOT_ACCESS_KEY_ID="+o.AccessKey, "ROOT_SECRET_ACCESS_KEY="+o.SecretKey)
	command.LogPath = filepath.Join(o.Dir, "versitygw.log")
	command.Ready = server.ask
	// It keeps nothing in memory, and would wait for its clients to hang up.
	command.StopSignal = syscall.SIGKILL
	if server.process, err = StartProcess(ctx, command); err != nil {
		return nil, err
	}
	return server, nil
}

// versitygwArgs makes the directories and returns the command line. Object metadata
// goes into extended attributes, as versitygw prefers, or beside the objects where the
// file system has none (tmpfs before Linux 6.6, some overlays).
func versitygwArgs(o S3Options) ([]string, error) {
	data, meta := filepath.Join(o.Dir, "objects"), filepath.Join(o.Dir, "metadata")
	if err := os.MkdirAll(data, 0o755); err != nil {
		return nil, fmt.Errorf("S3 server: %w", err)
	}
	args := []string{"--port", o.Addr, "--region", "us-east-1", "--quiet", "--keep-alive", "posix"}
	_, err := os.Stat(meta)
	if err != nil && hasXattr(data) {
		return append(args, data), nil
	}
	if err := os.MkdirAll(meta, 0o755); err != nil {
		return nil, fmt.Errorf("S3 server: %w", err)
	}
	return append(args, "--sidecar", meta, data), nil
}

func (s *S3) newClient() *s3.Client {
	return s3.New(s3.Options{
		BaseEndpoint: aws.String(s.Endpoint),
		UsePathStyle: true,
		Region:       s.Region,
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: s.AccessKey, SecretAccessKey: s.SecretKey}, nil
		}),
	})
}

// ask sends a signed request: only our own server knows the credentials, so that a
// stranger on the same port is not taken for it.
func (s *S3) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	_, err := s.client.ListBuckets(ctx, &s3.ListBucketsInput{}, func(o *s3.Options) { o.RetryMaxAttempts = 1 })
	return err
}

// CreateBucket creates a bucket; one that is there already is fine.
func (s *S3) CreateBucket(ctx context.Context, name string) error {
	_, err := s.client.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: aws.String(name)})
	var owned *types.BucketAlreadyOwnedByYou
	var exists *types.BucketAlreadyExists
	if err != nil && !errors.As(err, &owned) && !errors.As(err, &exists) {
		return fmt.Errorf("create bucket %s: %w", name, err)
	}
	return nil
}

// Process is the server's process, for who wants to kill it or to hear of its end.
func (s *S3) Process() *Process { return s.process }

// Stop ends the server and waits for its end. The error says that it had ended by itself
// or had to be killed. A further call does nothing.
func (s *S3) Stop() error { return s.process.Stop() }
