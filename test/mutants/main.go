// Command mutants proves that the tests of the invariants can fail. Each *.patch beside it
// breaks one invariant on purpose and names the test that must notice:
//
//	Invariant: 2. Nothing is dropped silently.
//	Test: ./pipeline TestSettleDeletesOnlyWhatEverySinkHas
//
//	diff --git …
//
// It copies the working tree to a scratch directory, runs the named tests unchanged (they
// must pass), and then, patch by patch, applies one and runs its test (it must fail, and
// by an assertion: a patch that does not apply or compile is an error). It exits with 1
// when a mutant survives. Run it from the repository's root, with `make mutants`; arguments
// select patches by a part of their names.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

// mutant is one patch and the test that must notice it.
type mutant struct {
	name, path, invariant, pkg, test string
}

func run(ctx context.Context, selected []string) error {
	mutants, err := load("test/mutants", selected)
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp("", "waybill-mutants-")
	if err != nil {
		return fmt.Errorf("scratch directory: %w", err)
	}
	defer os.RemoveAll(scratch)
	// Postgres runs as another user and must be able to pass through.
	if err := os.Chmod(scratch, 0o755); err != nil {
		return fmt.Errorf("scratch directory: %w", err)
	}
	if err := copyTree(ctx, scratch); err != nil {
		return err
	}
	if err := passUnchanged(ctx, scratch, mutants); err != nil {
		return err
	}
	var survived []string
	for _, m := range mutants {
		killed, err := m.try(ctx, scratch)
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		if !killed {
			survived = append(survived, m.name)
		}
	}
	fmt.Printf("mutants: %d passed, %d failed\n", len(mutants)-len(survived), len(survived))
	if len(survived) > 0 {
		return fmt.Errorf("survived: %s", strings.Join(survived, ", "))
	}
	return nil
}

// load reads the headers of the patches.
func load(dir string, selected []string) ([]mutant, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.patch"))
	if err != nil {
		return nil, fmt.Errorf("list the patches: %w", err)
	}
	var out []mutant
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".patch")
		if len(selected) > 0 && !slices.ContainsFunc(selected, func(s string) bool { return strings.Contains(name, s) }) {
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read a patch: %w", err)
		}
		m := mutant{name: name}
		if m.path, err = filepath.Abs(path); err != nil {
			return nil, fmt.Errorf("read a patch: %w", err)
		}
		for line := range strings.Lines(string(data)) {
			if rest, ok := strings.CutPrefix(line, "Invariant: "); ok {
				m.invariant = strings.TrimSpace(rest)
			}
			if rest, ok := strings.CutPrefix(line, "Test: "); ok {
				m.pkg, m.test, _ = strings.Cut(strings.TrimSpace(rest), " ")
			}
		}
		if m.invariant == "" || m.test == "" {
			return nil, fmt.Errorf("%s: wants the lines \"Invariant: …\" and \"Test: <package> <name>\" before the diff", path)
		}
		out = append(out, m)
	}
	switch {
	case len(paths) == 0:
		return nil, fmt.Errorf("%s has no patches: run this from the repository's root", dir)
	case len(out) == 0:
		return nil, fmt.Errorf("no patch in %s has %q in its name; name a part of one, such as order", dir, selected)
	}
	return out, nil
}

// copyTree copies what git tracks, or would, as it is in the working tree.
func copyTree(ctx context.Context, to string) error {
	files, err := command(ctx, ".", "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	if err != nil {
		return err
	}
	for name := range strings.SplitSeq(strings.TrimRight(files, "\x00"), "\x00") {
		info, err := os.Lstat(name)
		if errors.Is(err, os.ErrNotExist) || (err == nil && !info.Mode().IsRegular()) {
			continue
		}
		if err != nil {
			return fmt.Errorf("copy the tree: %w", err)
		}
		data, err := os.ReadFile(name)
		if err != nil {
			return fmt.Errorf("copy the tree: %w", err)
		}
		target := filepath.Join(to, name)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return fmt.Errorf("copy the tree: %w", err)
		}
		if err := os.WriteFile(target, data, info.Mode().Perm()); err != nil {
			return fmt.Errorf("copy the tree: %w", err)
		}
	}
	return nil
}

// passUnchanged runs every named test once without a patch, a package at a time.
func passUnchanged(ctx context.Context, dir string, mutants []mutant) error {
	tests := map[string][]string{}
	for _, m := range mutants {
		if !slices.Contains(tests[m.pkg], m.test) {
			tests[m.pkg] = append(tests[m.pkg], m.test)
		}
	}
	for pkg, names := range tests {
		out, err := command(ctx, dir, "go", "test", "-count=1", "-v", "-run", "^"+strings.Join(names, "$|^")+"$", pkg)
		if err != nil {
			return fmt.Errorf("unchanged, the tests of %s fail:\n%s", pkg, out)
		}
		for _, name := range names {
			if !strings.Contains(out, "--- PASS: "+name+" ") {
				return fmt.Errorf("%s has no test %s", pkg, name)
			}
		}
		fmt.Printf("unchanged  %s: %d tests pass\n", pkg, len(names))
	}
	return nil
}

// try applies the patch, runs the test and takes the patch back.
func (m mutant) try(ctx context.Context, dir string) (killed bool, err error) {
	start := time.Now()
	if out, err := command(ctx, dir, "git", "apply", "--unsafe-paths", m.path); err != nil {
		return false, fmt.Errorf("the patch does not apply; bring it up to date:\n%s", out)
	}
	defer func() {
		if out, back := command(ctx, dir, "git", "apply", "--unsafe-paths", "--reverse", m.path); back != nil {
			err = errors.Join(err, fmt.Errorf("take the patch back:\n%s", out))
		}
	}()
	out, failed := command(ctx, dir, "go", "test", "-count=1", "-timeout=3m", "-run", "^"+m.test+"$", m.pkg)
	switch {
	case failed == nil:
		fmt.Printf("SURVIVED   %s: %s passes (%s)\n", m.name, m.test, m.invariant)
		return false, nil
	case !strings.Contains(out, "--- FAIL: "+m.test) && !strings.Contains(out, "panic: test timed out"):
		return false, fmt.Errorf("%s does not fail by itself:\n%s", m.test, out)
	}
	fmt.Printf("killed     %s: by %s in %.1fs (%s)\n", m.name, m.test, time.Since(start).Seconds(), m.invariant)
	return true, nil
}

// command runs a program in dir and returns what it printed.
func command(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	// The scratch copy is no checkout, and must not be taken for part of one.
	cmd.Env = append(os.Environ(), "GIT_CEILING_DIRECTORIES="+filepath.Dir(dir))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w\n%s", name, err, out.String())
	}
	return out.String(), nil
}
