package devstack

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Root's clusters that the server's user cannot reach go elsewhere, come back from there,
// and are not mistaken for those of a directory that was removed.
func TestClusterElsewhere(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(t.TempDir(), "private", "pg")
	mustDo(t, os.MkdirAll(dir, 0o755))
	home, err := account{}.elsewhere(base, dir)
	mustDo(t, err)
	if !strings.HasPrefix(home, base) {
		t.Errorf("the cluster is in %s, want it below %s", home, base)
	}
	mustDo(t, os.WriteFile(filepath.Join(home, "data"), nil, 0o644))
	again, err := account{}.elsewhere(base, dir)
	mustDo(t, err)
	if _, err := os.Stat(filepath.Join(home, "data")); again != home || err != nil {
		t.Errorf("the second time it is in %s with %v, want what the first time left in %s", again, err, home)
	}
	mustDo(t, os.RemoveAll(dir))
	mustDo(t, os.MkdirAll(dir, 0o755))
	_, err = account{}.elsewhere(base, dir)
	mustDo(t, err)
	if _, err := os.Stat(filepath.Join(home, "data")); err == nil {
		t.Error("a new directory got the cluster of the removed one")
	}
}

func TestBlockedParents(t *testing.T) {
	a := account{credential: &syscall.Credential{Uid: 4242, Gid: 4242}}
	root := t.TempDir()
	mustDo(t, os.Chmod(root, 0o755))
	closed := filepath.Join(root, "closed")
	dir := filepath.Join(closed, "open", "pg")
	mustDo(t, os.MkdirAll(dir, 0o755))
	mustDo(t, os.Chmod(closed, 0o700))
	blocked, err := a.blockedParents(dir)
	mustDo(t, err)
	// Above root is what the machine's temporary directories are like.
	if len(blocked) == 0 || blocked[0] != closed {
		t.Errorf("blocked by %v, want %s first", blocked, closed)
	}
	mustDo(t, openTemporary(blocked))
	if blocked, err = a.blockedParents(dir); err != nil || len(blocked) != 0 {
		t.Errorf("still blocked by %v (%v)", blocked, err)
	}
	if openTemporary([]string{closed, "/"}) == nil {
		t.Error("it would have changed the permissions of /")
	}
}
