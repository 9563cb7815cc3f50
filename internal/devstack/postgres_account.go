package devstack

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// rootClusters is where root's clusters go whose own directory the unprivileged user
// cannot reach, which is the case below /root on most machines.
const rootClusters = "/var/lib/waybill"

// account is the user that Postgres runs as, since it refuses to run as root.
type account struct {
	credential *syscall.Credential // nil: this process's own user
}

// postgresAccount is this process's user, and for root an unprivileged one.
func postgresAccount() (account, error) {
	if os.Geteuid() != 0 {
		return account{}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return account{}, fmt.Errorf("user id of %s: %w", name, err)
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return account{}, fmt.Errorf("group id of %s: %w", name, err)
		}
		return account{credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
	}
	return account{}, errors.New("Postgres does not run as root, and there is neither a user postgres nor a user nobody: create one or run this as another user")
}

// own gives a file or directory to the account.
func (a account) own(path string) error {
	if a.credential == nil {
		return nil
	}
	return os.Chown(path, int(a.credential.Uid), int(a.credential.Gid))
}

// home returns where the cluster of dir lives: dir itself, or, where the account cannot
// reach that, a directory of root's named after it. A dir that was removed in between
// takes the cluster elsewhere with it, so that a fresh directory is a fresh cluster.
func (a account) home(dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if a.credential == nil {
		return dir, nil
	}
	blocked, err := a.blockedParents(dir)
	if err != nil {
		return "", err
	}
	if len(blocked) == 0 {
		return dir, a.own(dir)
	}
	if openTemporary(blocked) == nil {
		return dir, a.own(dir)
	}
	return a.elsewhere(rootClusters, dir)
}

// blockedParents lists the directories above dir that the account may not traverse.
func (a account) blockedParents(dir string) ([]string, error) {
	var blocked []string
	for parent := filepath.Dir(dir); ; parent = filepath.Dir(parent) {
		info, err := os.Stat(parent)
		if err != nil {
			return nil, err
		}
		if !a.mayTraverse(info) {
			blocked = append(blocked, parent)
		}
		if parent == filepath.Dir(parent) {
			return blocked, nil
		}
	}
}

// mayTraverse reads the permission bits as the kernel does.
func (a account) mayTraverse(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	mode := info.Mode().Perm()
	switch {
	case ok && stat.Uid == a.credential.Uid:
		return mode&0o100 != 0
	case ok && stat.Gid == a.credential.Gid:
		return mode&0o010 != 0
	default:
		return mode&0o001 != 0
	}
}

// openTemporary lets everybody through the given directories if each of them is a
// temporary one of this user's; others' and permanent ones keep their permissions.
func openTemporary(dirs []string) error {
	temp := filepath.Clean(os.TempDir()) + string(filepath.Separator)
	modes := make([]fs.FileMode, len(dirs))
	for i, dir := range dirs {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !strings.HasPrefix(dir, temp) || !ok || int(stat.Uid) != os.Geteuid() {
			return fmt.Errorf("%s is not a temporary directory of ours", dir)
		}
		modes[i] = info.Mode().Perm()
	}
	for i, dir := range dirs {
		if err := os.Chmod(dir, modes[i]|0o011); err != nil {
			return err
		}
	}
	return nil
}

// elsewhere keeps the cluster of dir below base. The marker in dir says that it is
// there; without the marker what is there belongs to a directory since removed.
func (a account) elsewhere(base, dir string) (string, error) {
	h := fnv.New64a()
	_, _ = h.Write([]byte(dir)) // a hash does not fail
	home := filepath.Join(base, fmt.Sprintf("cluster-%016x", h.Sum64()))
	marker := filepath.Join(dir, "elsewhere")
	if _, err := os.Stat(marker); errors.Is(err, fs.ErrNotExist) {
		if err := os.RemoveAll(home); err != nil {
			return "", err
		}
	}
	if err := os.MkdirAll(home, 0o755); err != nil {
		return "", err
	}
	note := home + "\nThe user that Postgres runs as cannot reach this directory, so the cluster is there.\n"
	if err := os.WriteFile(marker, []byte(note), 0o644); err != nil {
		return "", err
	}
	return home, a.own(home)
}
