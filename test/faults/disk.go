package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// disk is what a server's files are on, which can be full.
type disk interface {
	// fill leaves no room. It may be called again, and fills what has become free.
	fill() error
	free() error
}

// diskSize is room for a cluster and what a run writes, MiB.
const diskSize = 640

// memoryDisk is a small file system in memory, mounted for one run.
type memoryDisk struct{ dir string }

// mountSource names the process that mounted a disk, so that another can tell one that was
// left behind.
const mountSource = "waybill-faults-"

// mountDisk mounts a small disk on dir. It needs root, and the right to mount.
func mountDisk(dir string) (*memoryDisk, error) { return mountAs(dir, os.Getpid()) }

func mountAs(dir string, pid int) (*memoryDisk, error) {
	options := fmt.Sprintf("size=%dm,mode=0755", diskSize)
	out, err := exec.Command("mount", "-t", "tmpfs", "-o", options, mountSource+strconv.Itoa(pid), dir).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("mount a small disk: %w: %s", err, bytes.TrimSpace(out))
	}
	return &memoryDisk{dir}, nil
}

// unmount is for when nobody uses the disk any more; what still does loses it all the same.
func (d *memoryDisk) unmount() error { return unmount(d.dir) }

func unmount(dir string) error {
	out, err := exec.Command("umount", "-l", dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("unmount the small disk: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

func (d *memoryDisk) ballast() string { return filepath.Join(d.dir, "ballast") }

func (d *memoryDisk) fill() (err error) {
	f, err := os.OpenFile(d.ballast(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil && !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("fill the disk: %w", err)
	}
	if err != nil {
		return nil
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for size := 1 << 20; size >= 1<<12; {
		_, err := f.Write(make([]byte, size))
		switch {
		case errors.Is(err, syscall.ENOSPC):
			size /= 16 // the rest of the last megabyte, down to a page
		case err != nil:
			return fmt.Errorf("fill the disk: %w", err)
		}
	}
	return nil
}

func (d *memoryDisk) free() error {
	if err := os.Remove(d.ballast()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("free the disk: %w", err)
	}
	return nil
}

// unmountLeftovers unmounts what processes mounted that were killed, and deletes their
// directories.
func unmountLeftovers() error {
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return nil // no Linux: nothing was mounted
	}
	var errs []error
	for dir, pid := range readMounts(string(mounts)) {
		if isAlive(pid) {
			continue
		}
		errs = append(errs, unmount(dir))
		if parent := filepath.Dir(dir); strings.HasPrefix(filepath.Base(parent), scratchPrefix) {
			errs = append(errs, os.RemoveAll(parent))
		}
	}
	return errors.Join(errs...)
}

// readMounts finds the disks of this program, and which process mounted each.
func readMounts(mounts string) map[string]int {
	found := map[string]int{}
	for line := range strings.Lines(mounts) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		digits, ours := strings.CutPrefix(fields[0], mountSource)
		if pid, err := strconv.Atoi(digits); ours && err == nil {
			found[fields[1]] = pid
		}
	}
	return found
}

func isAlive(pid int) bool {
	err := syscall.Kill(pid, 0)
	return err == nil || errors.Is(err, syscall.EPERM)
}

// fileLimit lets the files of a server's processes not grow beyond fileLimitBytes: for
// where nothing may be mounted. A file of the write-ahead log is larger.
type fileLimit struct{ pid func() int }

const fileLimitBytes = 8 << 20

func (l *fileLimit) fill() error { return l.set(strconv.Itoa(fileLimitBytes) + ":") }

func (l *fileLimit) free() error { return l.set("unlimited:") }

func (l *fileLimit) set(limit string) error {
	first := l.pid()
	pids := append([]int{first}, childrenOf(first)...)
	for _, pid := range pids {
		command := exec.Command("prlimit", "--pid", strconv.Itoa(pid), "--fsize="+limit)
		command.SysProcAttr = asOwner(pid)
		out, err := command.CombinedOutput()
		if err != nil && isAlive(pid) {
			return fmt.Errorf("limit the size of files: %w: %s", err, bytes.TrimSpace(out))
		}
	}
	return nil
}

// asOwner lets root act as the user of a process: where it may not mount, it may not change
// others' limits either.
func asOwner(pid int) *syscall.SysProcAttr {
	info, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	if err != nil || os.Geteuid() != 0 {
		return nil
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: stat.Uid, Gid: stat.Gid}}
}

// childrenOf lists the direct children of a process.
func childrenOf(pid int) []int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil // it has ended
	}
	var children []int
	for _, field := range strings.Fields(string(text)) {
		if child, err := strconv.Atoi(field); err == nil {
			children = append(children, child)
		}
	}
	return children
}

// full keeps a disk full from inject to heal.
type full struct {
	disk   disk
	cancel context.CancelFunc
	done   chan error
}

func (f *full) inject(ctx context.Context) error {
	if err := f.disk.fill(); err != nil {
		return err
	}
	ctx, f.cancel = context.WithCancel(ctx)
	f.done = make(chan error, 1)
	go func() {
		var err error
		for ctx.Err() == nil && err == nil {
			sleep(ctx, lookEvery)
			err = f.disk.fill()
		}
		f.done <- err
	}()
	return nil
}

func (f *full) heal(context.Context) error {
	if f.cancel == nil {
		return f.disk.free()
	}
	f.cancel()
	return errors.Join(<-f.done, f.disk.free())
}
