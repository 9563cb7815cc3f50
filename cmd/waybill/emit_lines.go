package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/waybillhq/waybill/internal/intake"
	"github.com/waybillhq/waybill/pipeline"
)

const (
	// maxLineBytes is the longest line that is read; ingest's own limit is lower.
	maxLineBytes = 64 << 20
	// batchBytes ends a batch before it is larger than a request may be.
	batchBytes = 4 << 20
)

// inputLine is a line of the input that is not empty.
type inputLine struct {
	number int
	text   []byte
}

// sendLines sends each line as an event, until the input or ctx ends. What can be read
// without waiting goes into one request.
func (e *emitter) sendLines(ctx context.Context, in io.Reader, most int) error {
	lines := make(chan inputLine, most)
	failed := make(chan error, 1)
	// A read of standard input cannot be interrupted: after ctx has ended it may stay
	// behind until the process ends.
	go func() {
		defer close(lines)
		failed <- readLines(ctx, in, lines)
	}()
	for {
		batch, more := e.nextBatch(ctx, lines, most)
		if len(batch) > 0 {
			e.send(ctx, batch)
		}
		if ctx.Err() != nil {
			return notInterrupted(ctx)
		}
		if !more {
			return <-failed
		}
	}
}

func readLines(ctx context.Context, in io.Reader, lines chan<- inputLine) error {
	scanner := bufio.NewScanner(in)
	scanner.Buffer(nil, maxLineBytes)
	for number := 1; scanner.Scan(); number++ {
		text := bytes.TrimSpace(scanner.Bytes())
		if len(text) == 0 {
			continue
		}
		select {
		case lines <- inputLine{number, bytes.Clone(text)}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := scanner.Err(); err != nil {
		if errors.Is(err, bufio.ErrTooLong) {
			return fmt.Errorf("standard input: a line is longer than %d bytes", maxLineBytes)
		}
		return fmt.Errorf("standard input: %w", err)
	}
	return nil
}

// nextBatch waits for one line and takes what else is there. Lines that are no events are
// told and left out. more is false once the input has ended.
func (e *emitter) nextBatch(ctx context.Context, lines <-chan inputLine, most int) (batch []emission, more bool) {
	bytes := 0
	for len(batch) < most && bytes < batchBytes {
		line, ok, wait := inputLine{}, false, len(batch) == 0
		select {
		case line, ok = <-lines:
		default:
			if !wait {
				return batch, true
			}
			select {
			case line, ok = <-lines:
			case <-ctx.Done():
				return batch, false
			}
		}
		if !ok {
			return batch, false
		}
		name := fmt.Sprintf("line %d", line.number)
		// The server has its own limit of an event's size.
		ce, err := intake.ParseJSON(line.text, pipeline.DefaultMaxEventBytes*16)
		if err != nil {
			e.fail(name, err)
			continue
		}
		batch = append(batch, emission{event: ce, name: name})
		bytes += len(line.text)
	}
	return batch, true
}
