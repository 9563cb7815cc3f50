package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"time"
)

const (
	// home goes to the screen's first line; clearRest clears what is left of a line, clearBelow what is
	// below. Rewriting line by line does not flicker as clearing the screen would.
	home, clearRest, clearBelow = "\x1b[H", "\x1b[K", "\x1b[J"
	clearScreen                 = "\x1b[2J"
)

// watch looks until ctx ends, which is its proper end. A server that does not answer is shown, and asked
// again.
func (c *statusCommand) watch(ctx context.Context, con *console) error {
	for first := true; ; first = false {
		s := c.ask(ctx)
		if ctx.Err() != nil {
			return nil
		}
		var err error
		switch {
		case c.json():
			err = c.print(con, "", s)
		case con.terminal:
			err = s.writeScreen(con.out, first, c.Every)
		default:
			_, err = fmt.Fprintln(con.out, s.line())
		}
		if err != nil {
			return err
		}
		pause(ctx, c.Every)
		if ctx.Err() != nil {
			return nil
		}
	}
}

// writeScreen writes the state over the one before.
func (s *status) writeScreen(w io.Writer, first bool, every time.Duration) error {
	var text bytes.Buffer
	if first {
		text.WriteString(clearScreen)
	}
	text.WriteString(home)
	fmt.Fprintf(&text, "%s, again every %v; Ctrl-C ends it\n\n", s.At.Format(time.DateTime), every)
	if err := s.write(&text); err != nil {
		return err
	}
	screen := strings.ReplaceAll(text.String(), "\n", clearRest+"\n")
	_, err := io.WriteString(w, noWrap+screen+wrap+clearBelow)
	return err
}

// line is the state in one line.
func (s *status) line() string {
	parts := []string{s.At.Format(time.RFC3339)}
	for _, problem := range s.Problems {
		parts = append(parts, "PROBLEM: "+problem)
	}
	for _, sink := range s.Sinks {
		part := fmt.Sprintf("%s %d pending", sink.Sink, sink.Events)
		if sink.Events > 0 {
			part += ", oldest " + seconds(sink.Oldest)
		}
		if _, paused := s.Paused[sink.Sink]; paused {
			part += ", paused"
		}
		parts = append(parts, part)
	}
	if s.natsDone {
		alive, troubled := map[string]int{}, 0
		for _, p := range s.Processes {
			alive[p.Kind]++
			if p.Problem != "" {
				troubled++
			}
		}
		part := fmt.Sprintf("%d ingest, %d forwarder, %d janitor", alive["ingest"], alive["forwarder"], alive["janitor"])
		if troubled > 0 {
			part += fmt.Sprintf(", %d with problems", troubled)
		}
		parts = append(parts, part)
	}
	if s.postgresDone {
		letters := int64(0)
		for _, l := range s.DeadLetters {
			letters += l.Count
		}
		parts = append(parts, plural(int(letters), "dead letter"))
	}
	return strings.Join(parts, " · ")
}
