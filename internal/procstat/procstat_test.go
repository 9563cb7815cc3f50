package procstat

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestOwnProcess(t *testing.T) {
	before, err := CPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); time.Since(began) < 100*time.Millisecond; {
	}
	after, err := CPU(os.Getpid())
	if err != nil || after <= before {
		t.Errorf("%v of CPU before and %v after 100 ms of work, %v", before, after, err)
	}
	m, err := ReadMemory(os.Getpid())
	if err != nil || m.Now < 1<<20 || m.Peak < m.Now {
		t.Errorf("memory %+v, %v", m, err)
	}
}

// TestTreeCPU: a child counts while it lives and after it was waited for.
func TestTreeCPU(t *testing.T) {
	before, err := TreeCPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	own, err := CPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command("sh", "-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done")
	if err := child.Run(); err != nil {
		t.Fatal(err)
	}
	after, err := TreeCPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	ownAfter, err := CPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if children := (after - ownAfter) - (before - own); children < 20*time.Millisecond {
		t.Errorf("the child used %v; want at least 20 ms", children)
	}
}

func TestEndedProcess(t *testing.T) {
	child := exec.Command("true")
	if err := child.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := TreeCPU(child.Process.Pid); err == nil {
		t.Error("a process that has ended has CPU time")
	}
	if _, err := ReadMemory(child.Process.Pid); err == nil {
		t.Error("a process that has ended has memory")
	}
}
