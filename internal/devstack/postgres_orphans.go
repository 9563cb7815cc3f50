package devstack

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// errDataDirInUse means that a live server works on the data directory.
var errDataDirInUse = errors.New("a Postgres server still runs on it")

// removeStalePID removes the postmaster.pid that a killed server left behind. Postgres
// does so itself unless a process of its user has that id by now, which is likely after a
// restart of the machine or in a container; then it would refuse to start.
func (pg *Postgres) removeStalePID() error {
	path := pg.dataPath("postmaster.pid")
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	first, _, _ := strings.Cut(string(content), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err == nil && pg.worksHere(pid) {
		return fmt.Errorf("data directory %s: %w (process %d): stop it, or wait until it has ended", pg.dataPath(""), errDataDirInUse, pid)
	}
	if _, err := os.Stat("/proc/self"); err != nil {
		return nil // cannot tell who is alive: Postgres's own check decides
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove the file of a killed server: %w", err)
	}
	return nil
}

// worksHere reports whether the process works in the data directory, as every process of
// a server does. Without /proc it says no.
func (pg *Postgres) worksHere(pid int) bool {
	cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil {
		return false
	}
	data, err := filepath.EvalSymlinks(pg.dataPath(""))
	return err == nil && cwd == data
}

// childrenOf lists the direct children of a process; none where there is no /proc.
func childrenOf(parent int) []int {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is well-formed
	var children []int
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// <pid> (<name, which may hold anything>) <state> <parent> …
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(fields) < 2 || fields[1] != strconv.Itoa(parent) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			children = append(children, pid)
		}
	}
	return children
}
