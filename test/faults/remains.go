package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/waybillhq/waybill/pipeline"
)

// writeRemains keeps, beside the logs, what the processes complain of and what JetStream says of
// the streams and their consumers, when something did not come to its end.
func (s *system) writeRemains(ctx context.Context) error {
	var b strings.Builder
	for _, p := range s.stack.Parts() {
		if kind := kindOf(p.Name); kind == "ingest" || kind == "forwarder" || kind == "janitor" {
			fmt.Fprintf(&b, "%s: %s\n", p.Name, body(ctx, "http://"+p.Where[strings.LastIndex(p.Where, " ")+1:]+"/readyz"))
		}
	}
	for _, name := range []string{pipeline.EventsStream, pipeline.ReceiptsStream} {
		s.describe(ctx, &b, name)
	}
	path := filepath.Join(s.dir, "logs", "remains.txt")
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("keep what remains: %w", err)
	}
	return nil
}

func (s *system) describe(ctx context.Context, b *strings.Builder, stream string) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	say := func(what string, v any) {
		line, err := json.Marshal(v)
		fmt.Fprintf(b, "%s: %s %v\n", what, line, err)
	}
	js, err := s.js.Stream(ctx, stream)
	if err != nil {
		fmt.Fprintf(b, "%s: %v\n", stream, err)
		return
	}
	say(stream, js.CachedInfo())
	list := js.ListConsumers(ctx)
	for info := range list.Info() {
		say(stream+" "+info.Name, info)
	}
	fmt.Fprintf(b, "%s: consumers listed: %v\n", stream, list.Err())
}

// body is what an address answers, or why it does not.
func body(ctx context.Context, url string) string {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err.Error()
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = response.Body.Close() }() // it was read
	text, err := io.ReadAll(io.LimitReader(response.Body, 64<<10))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(text))
}
