// Command compose brings up compose.yaml for real and checks what it promises: events over HTTP and
// gRPC reach the endpoint and the archive, ingests and forwarders scale, killed containers lose
// nothing, volumes outlive down, and traces arrive.
//
//	go run ./test/compose                  # from the repository's root
//	go run ./test/compose --if-possible    # where there is no engine, or an image cannot be had, that is said and no failure
//
// It needs a Docker engine and docker compose, or docker-compose 1.29; COMPOSE names the command
// if it is another one. Images that the engine has are used; others are pulled. Go's and the base
// image are those of GO_IMAGE and BASE_IMAGE. Without the image of Jaeger it runs without traces,
// and says so.
//
// Everything has names and ports of its own, so that a system that runs already is not touched, and
// is taken down again, also after a failure.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/waybillhq/waybill/internal/cli"
)

func main() {
	cli.Exit("compose", cli.RunUntilSignal(func(ctx context.Context) error { return run(ctx, os.Args[1:], os.Stdout) }))
}

func run(ctx context.Context, args []string, w io.Writer) error {
	flags := flag.NewFlagSet("compose", flag.ContinueOnError)
	ifPossible := flags.Bool("if-possible", false, "where it cannot run, say so and succeed")
	events := flags.Int("events", 2000, "events that are sent before and after, and three times as many under load")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if *events < 100 {
		return fmt.Errorf("--events: %d; want at least 100", *events)
	}
	err := try(ctx, &logger{w: w, began: time.Now()}, *events)
	var impossible *impossibleError
	if *ifPossible && errors.As(err, &impossible) {
		banner(w, "THE CONTAINERS WERE NOT TESTED", impossible.Error())
		return nil
	}
	return err
}

// impossibleError says why the test cannot run on this machine, and what to do.
type impossibleError struct{ reason, remedy string }

func (e *impossibleError) Error() string { return e.reason + ": " + e.remedy }

// banner says something that nobody may miss.
func banner(w io.Writer, title, text string) {
	line := strings.Repeat("*", 78)
	fmt.Fprintf(w, "\n%s\n  %s\n  %s\n%s\n\n", line, title, text, line)
}

// logger prints lines with the seconds since the beginning before them.
type logger struct {
	w     io.Writer
	began time.Time
}

func (l *logger) say(format string, args ...any) {
	fmt.Fprintf(l.w, "%6.1f s  %s\n", time.Since(l.began).Seconds(), fmt.Sprintf(format, args...))
}
