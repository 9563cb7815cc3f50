package sinks

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/waybillhq/waybill/internal/devstack"
)

// testS3 is the S3 server of this package's tests; each test has a bucket of its own.
var testS3 *devstack.S3

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "waybill-sinks-s3-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if testS3, err = devstack.StartS3(context.Background(), devstack.S3Options{Dir: dir, Log: os.Stderr}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if err := testS3.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return max(code, 1)
	}
	return code
}
