package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/waybillhq/waybill/internal/devrun"
)

// laneCounts are what lanes compares. The last one is what a pipeline has unless it is told otherwise.
var laneCounts = []int{1, 4, 16}

// lanesLoads are the loads of lanes: those whose batches are small because a flush is spread over all
// lanes, and one whose batches are not.
func lanesLoads() []Load {
	few := singleLoad("10 callers, one event a call", overGRPC, 10, 10)
	web := singleLoad("100 connections over HTTP", overHTTP, 100, 100)
	full := fullLoad(256, 200)
	full.Name = "calls of 100"
	out := []Load{few, web, full}
	for i := range out {
		out[i].WarmUp, out[i].For = time.Second, 4*time.Second
	}
	return out
}

// runLanes compares systems with different numbers of lanes, in turn.
func runLanes(ctx context.Context, b *Bench) error {
	runs := b.config.Settings.runs()
	type place struct {
		lanes int
		load  string
	}
	stages := map[place][]*Stage{}
	err := compare(runs, laneCounts, func(lanes, run int) error {
		change := func(c *devrun.Config) { c.Lanes = lanes }
		return b.with(ctx, ofRun(lanesName(lanes), run, runs), change, func(s *System) error {
			for _, load := range lanesLoads() {
				st, err := s.Run(ctx, load)
				if err != nil {
					return err
				}
				stages[place{lanes, load.Name}] = append(stages[place{lanes, load.Name}], st)
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	for _, load := range lanesLoads() {
		for _, lanes := range laneCounts {
			of := stages[place{lanes, load.Name}]
			what := load.Name + ", " + lanesName(lanes)
			b.overRuns(Absolute, what+": accepted", valuesOf(of, func(st *Stage) float64 { return st.AcceptRate }), "events/s")
			b.overRuns(Absolute, what+": accept p99", valuesOf(of, func(st *Stage) float64 { return st.Accept.P99 }), "ms")
			b.overRuns(Absolute, what+": CPU of all processes but this", valuesOf(of, (*Stage).TotalCPU), "µs/event")
		}
	}
	return nil
}

func lanesName(lanes int) string {
	if lanes == 1 {
		return "1 lane"
	}
	return fmt.Sprintf("%d lanes", lanes)
}
