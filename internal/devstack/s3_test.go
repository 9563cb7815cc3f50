package devstack

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// orphanEnv makes the test binary start a server in the directory it names, print the
// server's pid and endpoint, and wait to be killed.
const orphanEnv = "WAYBILL_TEST_S3_ORPHAN"

func TestS3KeepsObjectsOverRestarts(t *testing.T) {
	dir := t.TempDir()
	server := mustStartS3(t, S3Options{Dir: dir})
	mustDo(t, server.CreateBucket(t.Context(), "kept"))
	mustDo(t, server.CreateBucket(t.Context(), "kept"))
	_, err := server.client.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: aws.String("kept"), Key: aws.String("a/b"), Body: strings.NewReader("hello"), IfNoneMatch: aws.String("*"),
	})
	mustDo(t, err)
	mustDo(t, server.Stop())
	mustDo(t, server.Stop())

	server = mustStartS3(t, S3Options{Dir: dir})
	got, err := server.client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("kept"), Key: aws.String("a/b")})
	mustDo(t, err)
	body, err := io.ReadAll(got.Body)
	mustDo(t, err)
	if string(body) != "hello" {
		t.Errorf("after a restart the object holds %q", body)
	}
}

func TestS3WithoutExtendedAttributes(t *testing.T) {
	dir := t.TempDir()
	mustDo(t, os.Mkdir(filepath.Join(dir, "metadata"), 0o755)) // as an earlier start without them leaves it
	server := mustStartS3(t, S3Options{Dir: dir, AccessKey: "someone", SecretKey: "something"})
	mustDo(t, server.CreateBucket(t.Context(), "beside"))
	put := func() error {
		_, err := server.client.PutObject(t.Context(), &s3.PutObjectInput{
			Bucket: aws.String("beside"), Key: aws.String("k"), Body: strings.NewReader("x"), IfNoneMatch: aws.String("*"),
		})
		return err
	}
	mustDo(t, put())
	if err := put(); err == nil || !strings.Contains(err.Error(), "412") {
		t.Errorf("second conditional PUT: %v, want 412", err)
	}
}

func TestS3SaysWhyItDoesNotStart(t *testing.T) {
	if _, err := StartS3(t.Context(), S3Options{}); err == nil || !strings.Contains(err.Error(), "Dir is empty") {
		t.Errorf("without a directory: %v", err)
	}
	missing := filepath.Join(t.TempDir(), "nowhere")
	if _, err := StartS3(t.Context(), S3Options{Dir: t.TempDir(), Binary: missing}); err == nil ||
		!strings.Contains(err.Error(), missing) {
		t.Errorf("with a missing binary: %v", err)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	mustDo(t, err)
	defer func() { _ = taken.Close() }()
	_, err = StartS3(t.Context(), S3Options{Dir: t.TempDir(), Addr: taken.Addr().String()})
	if err == nil || !strings.Contains(err.Error(), "ended before it was ready") {
		t.Errorf("on a taken port: %v", err)
	}
}

// TestS3DiesWithItsParent kills a process that started a server, with SIGKILL.
func TestS3DiesWithItsParent(t *testing.T) {
	if dir := os.Getenv(orphanEnv); dir != "" {
		server, err := StartS3(t.Context(), S3Options{Dir: dir})
		mustDo(t, err)
		_, _ = os.Stdout.WriteString(strconv.Itoa(server.Process().PID()) + "\n")
		<-server.Process().Done()
		return
	}
	self, err := os.Executable()
	mustDo(t, err)
	_, err = FindVersitygw(t.Context(), "", nil) // built before, so that the start is quick
	mustDo(t, err)
	parent := exec.Command(self, "-test.run=^TestS3DiesWithItsParent$")
	parent.Env = append(os.Environ(), orphanEnv+"="+t.TempDir())
	out, err := parent.StdoutPipe()
	mustDo(t, err)
	mustDo(t, parent.Start())
	line := make([]byte, 32)
	n, err := out.Read(line)
	mustDo(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(line[:n])))
	mustDo(t, err)
	mustDo(t, parent.Process.Kill())
	_ = parent.Wait()
	waitFor(t, "the server to end with its parent", func() bool { return !alive(pid) })
}

func TestBuildVersitygwOnceForAll(t *testing.T) {
	dest := filepath.Join(t.TempDir(), "versitygw")
	var log bytes.Buffer
	unlock, err := lockFile(t.Context(), dest+".lock")
	mustDo(t, err)
	built := make(chan error)
	go func() {
		_, err := BuildVersitygw(t.Context(), dest, &log)
		built <- err
	}()
	mustDo(t, os.WriteFile(dest, []byte("built by another process"), 0o755))
	unlock()
	mustDo(t, <-built)
	if log.Len() > 0 {
		t.Errorf("it built although another process had: %s", log.String())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	unlock, err = lockFile(t.Context(), dest+".lock")
	mustDo(t, err)
	defer unlock()
	if _, err := lockFile(ctx, dest+".lock"); err == nil {
		t.Error("a held lock was taken")
	}
}

func TestBuildVersitygwNeedsTheRepository(t *testing.T) {
	t.Chdir(t.TempDir())
	_, err := BuildVersitygw(t.Context(), filepath.Join(t.TempDir(), "versitygw"), nil)
	if err == nil || !strings.Contains(err.Error(), "put a versitygw") {
		t.Errorf("outside the repository: %v", err)
	}
}

func TestFindVersitygwByEnvironment(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "mine")
	mustDo(t, os.WriteFile(binary, nil, 0o755))
	t.Setenv(versitygwEnv, binary)
	if got, err := FindVersitygw(t.Context(), "", nil); err != nil || got != binary {
		t.Errorf("got %q, %v", got, err)
	}
	t.Setenv(versitygwEnv, "")
	t.Setenv("PATH", filepath.Dir(binary))
	mustDo(t, os.Rename(binary, filepath.Join(filepath.Dir(binary), "versitygw")))
	if got, err := FindVersitygw(t.Context(), "", nil); err != nil || filepath.Dir(got) != filepath.Dir(binary) {
		t.Errorf("got %q, %v", got, err)
	}
}

func mustStartS3(t *testing.T, o S3Options) *S3 {
	t.Helper()
	server, err := StartS3(t.Context(), o)
	mustDo(t, err)
	t.Cleanup(func() { mustDo(t, server.Stop()) })
	return server
}

func mustDo(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// waitFor polls until the condition holds, for a minute at most.
func waitFor(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain for " + what)
		}
	}
}

// alive reports whether a process runs; a zombie that nobody reaps does not.
func alive(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return syscall.Kill(pid, 0) == nil
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z")
}
