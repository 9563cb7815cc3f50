package devstack_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/waybillhq/waybill/internal/devstack"
)

func TestLockDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	lock, err := devstack.LockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = devstack.LockDir(dir)
	if !errors.Is(err, devstack.ErrDirInUse) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Errorf("a second lock: %v, want ErrDirInUse that names this process", err)
	}
	if err := lock.Unlock(); err != nil {
		t.Fatal(err)
	}
	again, err := devstack.LockDir(dir)
	if err != nil {
		t.Fatalf("after the unlock: %v", err)
	}
	if err := again.Unlock(); err != nil {
		t.Error(err)
	}
	if _, err := devstack.LockDir(filepath.Join(dir, ".lock")); err == nil {
		t.Error("a file was locked as a directory")
	}
}
