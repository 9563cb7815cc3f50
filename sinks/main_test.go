package sinks

import (
	"context"
	"fmt"
	"net/http/httptest"
	"os"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/waybillhq/waybill/internal/devstack"
	"github.com/waybillhq/waybill/internal/s3mem"
)

// serverEnv chooses the S3 server of this package's tests: serverInMemory, or else a real one.
const (
	serverEnv      = "WAYBILL_TEST_S3"
	serverInMemory = "memory"
)

// s3Server is an S3 server as tests need it.
type s3Server struct {
	Endpoint, AccessKey, SecretKey, Region string
	stop                                   func() error
}

// CreateBucket creates a bucket.
func (s *s3Server) CreateBucket(ctx context.Context, name string) error {
	cfg := DefaultS3Config()
	cfg.Endpoint, cfg.PathStyle, cfg.AccessKey, cfg.SecretKey = s.Endpoint, true, s.AccessKey, s.SecretKey
	client, err := NewS3Client(ctx, cfg)
	if err != nil {
		return err
	}
	_, err = client.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: aws.String(name)})
	return err
}

// testS3 is the S3 server of this package's tests; each test has a bucket of its own.
var testS3 *s3Server

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "waybill-sinks-s3-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if testS3, err = startTestS3(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if err := testS3.stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return max(code, 1)
	}
	return code
}

func startTestS3(dir string) (*s3Server, error) {
	if os.Getenv(serverEnv) == serverInMemory {
		const key = "tests"
		server := httptest.NewServer(s3mem.New(key, key))
		return &s3Server{server.URL, key, key, s3mem.Region, func() error { server.Close(); return nil }}, nil
	}
	server, err := devstack.StartS3(context.Background(), devstack.S3Options{Dir: dir, Log: os.Stderr})
	if err != nil {
		return nil, err
	}
	return &s3Server{server.Endpoint, server.AccessKey, server.SecretKey, server.Region, server.Stop}, nil
}
