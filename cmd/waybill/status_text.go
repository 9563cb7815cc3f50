package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/waybillhq/waybill/pipeline"
)

// write writes the state for people.
func (s *status) write(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	for _, problem := range s.Problems {
		_, _ = fmt.Fprintf(table, "PROBLEM: %s\n", problem) // Flush tells of failures to write
	}
	s.writeTrouble(table)
	if s.postgresDone {
		s.writeSinks(table)
	}
	if s.natsDone {
		s.writeProcesses(table)
		s.writeLanes(table)
	}
	if s.postgresDone {
		s.writeLetters(table)
	}
	return table.Flush()
}

func (s *status) writeSinks(w io.Writer) {
	_, _ = fmt.Fprintf(w, "pipeline: %s, grace %s\n\n", plural(s.Lanes, "lane"), s.Grace)
	_, _ = fmt.Fprintln(w, "sink\tpending events\tbytes\tbatches\toverdue batches\toldest")
	for _, sink := range s.Sinks {
		oldest := "-"
		if sink.Events > 0 {
			oldest = time.Duration(sink.Oldest * float64(time.Second)).Round(100 * time.Millisecond).String()
		}
		_, _ = fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%s\n", sink.Sink, sink.Events, sink.Bytes, sink.Batches, sink.Overdue, oldest)
	}
	_, _ = fmt.Fprintln(w)
	if o := s.Outbox; o.Waiting+o.Refused > 0 {
		_, _ = fmt.Fprintf(w, "outbox: %d wait to be taken, the oldest for %v; %d are no events\n\n", o.Waiting,
			time.Duration(o.Oldest*float64(time.Second)).Round(100*time.Millisecond), o.Refused)
	}
}

func (s *status) writeProcesses(w io.Writer) {
	_, _ = fmt.Fprintln(w, "process\tid\thost\tpid\tup\tversion\tproblem")
	alive := map[string]bool{}
	for _, p := range s.Processes {
		alive[p.Kind] = true
		problem := "-"
		if p.Problem != "" {
			problem = oneLine(p.Problem)
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\n", p.Kind, p.ID, p.Host, p.PID,
			s.At.Sub(p.Started).Round(time.Second), p.Version, problem)
	}
	for _, kind := range []string{pipeline.KindIngest, pipeline.KindForwarder, pipeline.KindJanitor} {
		if !alive[kind] && !(kind == pipeline.KindIngest && alive[pipeline.KindEmitter]) {
			_, _ = fmt.Fprintf(w, "%s\tnone is alive\n", kind)
		}
	}
	_, _ = fmt.Fprintln(w)
}

// lanesByOwner are the lanes that are held, by sink and forwarder.
func (s *status) lanesByOwner() map[string]map[string][]int {
	owners := map[string]map[string][]int{}
	for _, sink := range s.Sinks {
		owners[sink.Sink] = map[string][]int{}
	}
	for _, o := range s.Owners {
		if owners[o.Sink] == nil {
			owners[o.Sink] = map[string][]int{}
		}
		owners[o.Sink][o.Forwarder] = append(owners[o.Sink][o.Forwarder], o.Lane)
	}
	return owners
}

// writeLanes lists, for each sink, the lanes by owner, and those that have none.
func (s *status) writeLanes(w io.Writer) {
	owners := s.lanesByOwner()
	_, _ = fmt.Fprintln(w, "sink\tlanes\towner")
	for _, sink := range slices.Sorted(maps.Keys(owners)) {
		lanes := owners[sink]
		for _, owner := range slices.Sorted(maps.Keys(lanes)) {
			_, _ = fmt.Fprintf(w, "%s\t%s\t%s\n", sink, ranges(lanes[owner]), owner)
		}
		var nobodys []int
		byReason := map[string][]int{} // paused lanes
		for _, lane := range s.freeLanes(lanes) {
			if p, paused := s.Paused[sink].Of(lane); paused {
				text := "paused since " + p.Since.UTC().Format(time.RFC3339)
				if p.Reason != "" {
					text += ": " + oneLine(p.Reason)
				}
				byReason[text] = append(byReason[text], lane)
				continue
			}
			nobodys = append(nobodys, lane)
		}
		for _, text := range slices.Sorted(maps.Keys(byReason)) {
			_, _ = fmt.Fprintf(w, "%s\t%s\t%s\n", sink, ranges(byReason[text]), text)
		}
		if len(nobodys) > 0 {
			_, _ = fmt.Fprintf(w, "%s\t%s\tnobody\n", sink, ranges(nobodys))
		}
	}
	_, _ = fmt.Fprintln(w)
}

// freeLanes returns the lanes of the pipeline that none of the owners has.
func (s *status) freeLanes(owners map[string][]int) (free []int) {
	for lane := range s.Lanes {
		owned := false
		for _, lanes := range owners {
			owned = owned || slices.Contains(lanes, lane)
		}
		if !owned {
			free = append(free, lane)
		}
	}
	return free
}

func (s *status) writeLetters(w io.Writer) {
	if len(s.DeadLetters) == 0 {
		_, _ = fmt.Fprintln(w, "no dead letters")
		return
	}
	_, _ = fmt.Fprintln(w, "dead letters of\tcode\tcount")
	for _, l := range s.DeadLetters {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%d\n", l.Sink, l.Code, l.Count)
	}
	if s.MoreLetters {
		_, _ = fmt.Fprintf(w, "and more: counting ended at %d\n", statusLetters)
	}
}

// ranges writes sorted numbers as 0-3,7.
func ranges(numbers []int) string {
	var parts []string
	for i := 0; i < len(numbers); {
		j := i
		for j+1 < len(numbers) && numbers[j+1] == numbers[j]+1 {
			j++
		}
		part := strconv.Itoa(numbers[i])
		if j > i {
			part += "-" + strconv.Itoa(numbers[j])
		}
		parts = append(parts, part)
		i = j + 1
	}
	return strings.Join(parts, ",")
}
