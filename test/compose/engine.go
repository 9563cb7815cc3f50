package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

const (
	// commandTimeout bounds a command that builds or starts something.
	commandTimeout = 10 * time.Minute
	// askTimeout bounds one that only asks.
	askTimeout = 30 * time.Second
	// pullTimeout bounds the download of one image.
	pullTimeout = 5 * time.Minute
)

// command runs a program and returns what it printed to standard output. The error holds the end of
// what it printed to standard error.
func command(ctx context.Context, timeout time.Duration, env []string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	// Not killed at once: what it has begun in the engine would go on without it.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), errors.Join(err, context.Cause(ctx)), tail(errs.String()+out.String(), 30))
	}
	return out.Bytes(), nil
}

// tail is the last lines of a text.
func tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// composeCommand finds what composes containers here, behind an engine that answers.
func composeCommand(ctx context.Context) ([]string, error) {
	if _, err := command(ctx, askTimeout, nil, "docker", "version"); err != nil {
		return nil, &impossibleError{
			"no Docker engine answers",
			"install one (Debian: apt-get install docker.io docker-compose), start it, and be allowed to use it",
		}
	}
	candidates := [][]string{{"docker", "compose"}, {"docker-compose"}}
	if named := strings.Fields(os.Getenv("COMPOSE")); len(named) > 0 {
		candidates = [][]string{named}
	}
	for _, c := range candidates {
		if _, err := command(ctx, askTimeout, nil, append(c[:len(c):len(c)], "version")...); err == nil {
			return c, nil
		}
	}
	return nil, &impossibleError{"there is an engine, and nothing that composes containers", "install docker compose, or docker-compose 1.29, or name it with COMPOSE"}
}

// waits reports whether a compose command can wait for health by itself, which 1.29 cannot.
func waits(ctx context.Context, compose []string) bool {
	help, err := command(ctx, askTimeout, nil, append(compose[:len(compose):len(compose)], "up", "--help")...)
	return err == nil && bytes.Contains(help, []byte("--wait"))
}

// haveImage reports whether the engine has an image, or has got it now.
func haveImage(ctx context.Context, log *logger, image string) bool {
	if _, err := command(ctx, askTimeout, nil, "docker", "image", "inspect", image); err == nil {
		return true
	}
	log.say("pulling %s", image)
	_, err := command(ctx, pullTimeout, nil, "docker", "pull", "--quiet", image)
	if err != nil {
		log.say("%s", tail(err.Error(), 1))
	}
	return err == nil
}
