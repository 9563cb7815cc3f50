package devstack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	versitygwPackage = "github.com/versity/versitygw/cmd/versitygw"
	// versitygwVersion names the cached binary; it must agree with the tool module.
	versitygwVersion = "v1.8.0"
	// versitygwEnv names a binary to use.
	versitygwEnv = "WAYBILL_VERSITYGW"
	modulePath   = "github.com/waybillhq/waybill"
)

// FindVersitygw returns the path of a versitygw binary: the one named; the one that
// $WAYBILL_VERSITYGW names; the one beside this executable; the one in PATH; else the one
// that BuildVersitygw builds into the user's cache. log, which may be nil, receives a line
// before a build, which takes two minutes on two cores.
func FindVersitygw(ctx context.Context, named string, log io.Writer) (string, error) {
	if named == "" {
		named = os.Getenv(versitygwEnv)
	}
	if named != "" {
		if err := executable(named); err != nil {
			return "", fmt.Errorf("versitygw: %w; name an existing binary or unset %s", err, versitygwEnv)
		}
		return filepath.Abs(named)
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "versitygw")
		if executable(beside) == nil {
			return beside, nil
		}
	}
	if found, err := exec.LookPath("versitygw"); err == nil {
		return filepath.Abs(found)
	}
	return BuildVersitygw(ctx, "", log)
}

// BuildVersitygw builds the server from the tool module of the repository around the
// working directory, unless dest exists already, and returns dest. An empty dest means
// <user cache>/waybill/versitygw-<version>. Processes that come here at once build it once.
func BuildVersitygw(ctx context.Context, dest string, log io.Writer) (string, error) {
	if dest == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return "", withVersitygwRemedy(fmt.Errorf("find the user's cache directory: %w", err))
		}
		dest = filepath.Join(cache, "waybill", "versitygw-"+versitygwVersion)
	}
	if executable(dest) == nil {
		return dest, nil
	}
	root, err := repositoryRoot()
	if err != nil {
		return "", withVersitygwRemedy(err)
	}
	if err := os.MkdirAll(filepath.Dir(dest), 0o755); err != nil {
		return "", withVersitygwRemedy(err)
	}
	unlock, err := lockFile(ctx, dest+".lock")
	if err != nil {
		return "", withVersitygwRemedy(err)
	}
	defer unlock()
	if executable(dest) == nil { // somebody else built it while we waited
		return dest, nil
	}
	if log != nil {
		_, _ = fmt.Fprintf(log, "building the S3 server versitygw %s (once, about two minutes)\n", versitygwVersion)
	}
	if err := goBuild(ctx, filepath.Join(root, "internal", "tools"), dest); err != nil {
		return "", withVersitygwRemedy(err)
	}
	return dest, nil
}

func withVersitygwRemedy(err error) error {
	return fmt.Errorf("versitygw: none in PATH, and it cannot be built: %w; put a versitygw %s into PATH, "+
		"or name one in %s, or use an S3 server of your own", err, versitygwVersion, versitygwEnv)
}

// goBuild builds into a name of its own first, so that dest is whole whenever it exists.
func goBuild(ctx context.Context, module, dest string) error {
	partial := fmt.Sprintf("%s.%d", dest, os.Getpid())
	defer func() { _ = os.Remove(partial) }()
	cmd := exec.CommandContext(ctx, "go", "build", "-C", module, "-o", partial, versitygwPackage)
	// A workspace or flags of the caller's (-race, -mod) are not meant for this module.
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-buildvcs=false", "CGO_ENABLED=0")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go build %s: %w: %s", versitygwPackage, err, bytes.TrimSpace(out.Bytes()))
	}
	return os.Rename(partial, dest)
}

// repositoryRoot walks up from the working directory to the go.mod of this module.
func repositoryRoot() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		first, _, _ := strings.Cut(string(data), "\n")
		if err == nil && strings.TrimSpace(first) == "module "+modulePath {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%s is not inside a checkout of %s", start, modulePath)
		}
	}
}

// lockFile takes the file's lock, waiting for whoever holds it until ctx ends. The lock
// goes with the process, so a killed builder leaves none behind.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("wait for the lock of %s: %w", path, ctx.Err()), f.Close())
		case <-tick.C:
		}
	}
}

// executable returns an error unless path is a file that may be run.
func executable(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.IsDir() || info.Mode()&0o111 == 0 {
		return fmt.Errorf("%s is not an executable file", path)
	}
	return nil
}
