package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/waybillhq/waybill/pipeline"
)

// trouble is one thing that is wrong with a pipeline.
type trouble struct {
	Of      string `json:"of"` // a sink, a stream, a kind of process or one process
	Problem string `json:"problem"`
}

// nearFull is the part of a stream's bytes from which on it is trouble.
const nearFull = 0.8

// findTrouble gathers what is wrong, as far as the state is known.
func (s *status) findTrouble() {
	add := func(of, format string, args ...any) {
		s.Trouble = append(s.Trouble, trouble{of, fmt.Sprintf(format, args...)})
	}
	for _, sink := range s.Sinks {
		if sink.NearTTL > 0 {
			add("sink "+sink.Sink, "%d events have less than a fifth of their time to live left; the first becomes a dead letter in %v",
				sink.NearTTL, time.Duration(*sink.TTLBudget*float64(time.Second)).Round(time.Second))
		}
	}
	if s.Outbox.trouble != nil {
		add("outbox", "%s", oneLine(s.Outbox.trouble.Error()))
	}
	if !s.natsDone {
		return
	}
	for _, b := range s.streams {
		if b.Fill() >= nearFull {
			add(b.Name, "%d of %d %s are used (%.0f %%)", b.Used, b.Limit, b.Unit, 100*b.Fill())
		}
	}
	alive := map[string]bool{}
	for _, p := range s.Processes {
		alive[p.Kind] = true
		if p.Problem != "" {
			add(p.Kind+" "+p.ID, "%s", oneLine(p.Problem))
		}
	}
	for kind, means := range map[string]string{
		pipeline.KindJanitor:   "nothing is settled, retransmitted or expired",
		pipeline.KindForwarder: "nothing is delivered",
		pipeline.KindIngest:    "nothing is accepted",
	} {
		if kind == pipeline.KindIngest && alive[pipeline.KindEmitter] {
			continue // that is a way in too
		}
		if !alive[kind] {
			add(kind, "none is alive: %s; start one", means)
		}
	}
	for sink, lanes := range s.lanesByOwner() {
		free := slices.DeleteFunc(s.freeLanes(lanes), func(lane int) bool {
			_, paused := s.Paused[sink].Of(lane) // which is no trouble of its own
			return paused
		})
		if len(free) > 0 && alive[pipeline.KindForwarder] {
			add("sink "+sink, "nobody holds its lanes %s", ranges(free))
		}
	}
	slices.SortStableFunc(s.Trouble, func(a, b trouble) int { return cmp.Compare(a.Of, b.Of) })
}

func (s *status) writeTrouble(w io.Writer) {
	for _, t := range s.Trouble {
		_, _ = fmt.Fprintf(w, "TROUBLE: %s: %s\n", t.Of, strings.TrimSpace(t.Problem)) // Flush tells of failures to write
	}
}
