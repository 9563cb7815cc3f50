package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/waybillhq/waybill/internal/devrun"
	"github.com/waybillhq/waybill/pipeline"
)

const (
	// watchEvery is the pause between two looks.
	watchEvery = time.Second
	// surveyShare keeps surveys of a large backlog from loading the database: at most this
	// share of the time is spent on them.
	surveyShare = 10
)

// watcher turns what a stack says into a line a second.
type watcher struct {
	stack *devrun.Stack
	store *pipeline.Store

	before   devrun.Counters
	at       time.Time
	survey   pipeline.Survey
	surveyed time.Time // when the next survey may be made
	problem  error     // of the newest survey
}

// watch shows the stack's live line until ctx ends.
func watch(ctx context.Context, screen *screen, stack *devrun.Stack) error {
	store, err := stack.OpenStore(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	defer screen.end()
	w := &watcher{stack: stack, store: store, before: stack.Counters(ctx), at: time.Now()}
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			screen.live(w.look(ctx))
		}
	}
}

func (w *watcher) look(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	now, counters := time.Now(), w.stack.Counters(ctx)
	if now.After(w.surveyed) {
		w.survey, w.problem = w.store.Survey(ctx)
		w.surveyed = time.Now().Add(surveyShare * time.Since(now))
	}
	line := renderLive(w.before, counters, now.Sub(w.at), w.survey, w.problem)
	w.before, w.at = counters, now
	return line
}

// renderLive is the line of one look: rates since the look before, and what waits.
func renderLive(before, now devrun.Counters, passed time.Duration, survey pipeline.Survey, problem error) string {
	rate := func(a, b int64) string { return fmt.Sprintf("%.0f/s", max(0, float64(b-a)/passed.Seconds())) }
	parts := []string{fmt.Sprintf("accepted %d (%s)", now.Accepted, rate(before.Accepted, now.Accepted))}
	backlogs := survey.BySink()
	names := map[string]bool{}
	for sink := range backlogs {
		names[sink] = true
	}
	for sink := range now.Delivered {
		names[sink] = true
	}
	var oldest time.Duration
	for _, sink := range slices.Sorted(maps.Keys(names)) {
		part := fmt.Sprintf("%s %d (%s)", sink, now.Delivered[sink], rate(before.Delivered[sink], now.Delivered[sink]))
		if b, waits := backlogs[sink]; waits {
			part += fmt.Sprintf(", %d pending", b.Events)
			oldest = max(oldest, survey.Now.Sub(b.OldestAccepted))
		}
		parts = append(parts, part)
	}
	switch {
	case problem != nil:
		parts = append(parts, "Postgres does not answer")
	case oldest > 0:
		parts = append(parts, fmt.Sprintf("oldest %.1f s", oldest.Seconds()))
	default:
		parts = append(parts, "nothing pending")
	}
	return strings.Join(parts, " · ")
}
