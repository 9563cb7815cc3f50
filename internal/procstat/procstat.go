// Package procstat reads what Linux's /proc says of a process: CPU time and memory.
package procstat

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// clockTick is the unit of times in /proc, the same on all of Linux's platforms that Go
// runs on.
const clockTick = time.Second / 100

// stat is what is used of /proc/PID/stat.
type stat struct {
	parent int
	own    time.Duration // user and system
	waited time.Duration // of children that ended and were waited for
}

func readStat(pid int) (stat, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return stat{}, fmt.Errorf("CPU time of process %d: %w", pid, err)
	}
	// The name, in parentheses, may hold anything.
	text := string(data)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 15 {
		return stat{}, fmt.Errorf("CPU time of process %d: %d fields in its stat; want 15 or more", pid, len(fields))
	}
	var numbers [5]int64
	for i, field := range []int{1, 11, 12, 13, 14} {
		if numbers[i], err = strconv.ParseInt(fields[field], 10, 64); err != nil {
			return stat{}, fmt.Errorf("CPU time of process %d: %w", pid, err)
		}
	}
	return stat{
		parent: int(numbers[0]),
		own:    time.Duration(numbers[1]+numbers[2]) * clockTick,
		waited: time.Duration(numbers[3]+numbers[4]) * clockTick,
	}, nil
}

// CPU is the CPU time, user and system, that a process has used, in steps of 10 ms.
func CPU(pid int) (time.Duration, error) {
	s, err := readStat(pid)
	return s.own, err
}

// TreeCPU is CPU with that of the children: those that live, and those that ended and were
// waited for. It is for servers such as Postgres, whose children have none themselves.
func TreeCPU(pid int) (time.Duration, error) {
	s, err := readStat(pid)
	if err != nil {
		return 0, err
	}
	sum := s.own + s.waited
	err = eachChild(pid, func(_ int, child stat) { sum += child.own })
	return sum, err
}

// eachChild visits the children of a process that live.
func eachChild(parent int, visit func(pid int, s stat)) error {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return fmt.Errorf("children of process %d: %w", parent, err)
	}
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		// One that cannot be read has ended since it was listed.
		if s, err := readStat(pid); err == nil && s.parent == parent {
			visit(pid, s)
		}
	}
	return nil
}

// Memory is what a process has resident, in bytes, shared pages included.
type Memory struct{ Now, Peak int64 }

// ReadMemory returns the memory of a process.
func ReadMemory(pid int) (Memory, error) {
	file, err := os.Open("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return Memory{}, fmt.Errorf("memory of process %d: %w", pid, err)
	}
	defer file.Close()
	var m Memory
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ":")
		into := map[string]*int64{"VmRSS": &m.Now, "VmHWM": &m.Peak}[name]
		if into == nil {
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			return Memory{}, fmt.Errorf("memory of process %d: %s: %w", pid, name, err)
		}
		*into = kib << 10
	}
	if err := lines.Err(); err != nil {
		return Memory{}, fmt.Errorf("memory of process %d: %w", pid, err)
	}
	if m.Peak == 0 {
		return Memory{}, fmt.Errorf("memory of process %d: %w", pid, errors.New("it has ended"))
	}
	return m, nil
}
