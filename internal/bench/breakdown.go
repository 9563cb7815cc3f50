package bench

import (
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/waybillhq/waybill/internal/collector"
	stages "github.com/waybillhq/waybill/internal/journey"
)

// stageNames are the stages that each event's way to a sink has.
var stageNames = []string{
	stages.Wait, stages.Commit, stages.Publish, stages.Queue, stages.Gather, stages.Send, stages.Receipt, stages.Settle,
}

// Of stageNames: what precedes the answer, and what precedes the delivery.
const (
	stagesToAnswer   = 2
	stagesToDelivery = 6
)

// journey is how long an event's stages to one sink took.
type journey struct {
	event  int64
	batch  int // events of its batch
	stages [8]time.Duration
}

// sum adds up the stages from one up to another.
func (j *journey) sum(from, past int) (total time.Duration) {
	for _, d := range j.stages[from:past] {
		total += d
	}
	return total
}

// eventSpans are the spans of one event.
type eventSpans struct {
	event                   int64
	accept, commit, publish *collector.Span
	process, send, settle   map[string]*collector.Span // by sink
	odd                     bool                       // something was done more than once
}

// journeys makes one of each event and sink whose spans are complete. odd counts those that were
// published or processed more than once, which say nothing of one way.
func journeys(l *ledger, spans []collector.Span) (bySink map[string][]journey, odd int) {
	events := map[string]*eventSpans{} // by trace
	byEvent := func(s *collector.Span) *eventSpans {
		e := events[s.TraceID]
		if e == nil {
			e = &eventSpans{event: -1, process: map[string]*collector.Span{}, send: map[string]*collector.Span{}, settle: map[string]*collector.Span{}}
			events[s.TraceID] = e
		}
		if event, ok := l.parseID([]byte(s.Attributes["messaging.message.conversation_id"])); ok {
			e.event = event
		}
		return e
	}
	for i := range spans {
		byEvent(&spans[i]).add(&spans[i])
	}
	bySink = map[string][]journey{}
	for _, e := range events {
		switch {
		case e.event < 0 || e.accept == nil || e.commit == nil || e.publish == nil:
			continue // the span of a batch, or an event that was not accepted
		case e.odd:
			odd++
			continue
		}
		for sink, process := range e.process {
			if send, settle := e.send[sink], e.settle[sink]; send != nil && settle != nil {
				bySink[sink] = append(bySink[sink], e.journey(process, send, settle))
			}
		}
	}
	for _, list := range bySink {
		slices.SortFunc(list, func(a, b journey) int { return int(a.event - b.event) })
	}
	return bySink, odd
}

// add notes a span of the event.
func (e *eventSpans) add(s *collector.Span) {
	first := func(into **collector.Span) {
		e.odd = e.odd || *into != nil
		*into = s
	}
	ofSink := func(into map[string]*collector.Span) {
		sink := s.Attributes["waybill.sink"]
		e.odd = e.odd || into[sink] != nil
		into[sink] = s
	}
	switch s.Attributes["messaging.operation.name"] {
	case "accept":
		first(&e.accept)
	case "commit":
		first(&e.commit)
	case "publish":
		first(&e.publish)
	case "process":
		ofSink(e.process)
	case "settle":
		ofSink(e.settle)
	case "send":
		// Of several tries the last one counts; the earlier ones are of the time before it.
		sink := s.Attributes["waybill.sink"]
		if before := e.send[sink]; before == nil || before.Start.Before(s.Start) {
			e.send[sink] = s
		}
	}
}

func (e *eventSpans) journey(process, send, settle *collector.Span) journey {
	j := journey{event: e.event, batch: 1}
	if n, err := strconv.Atoi(e.publish.Attributes["messaging.batch.message_count"]); err == nil {
		j.batch = n
	}
	way := stages.Way{Accept: e.accept, Commit: e.commit, Publish: e.publish, Process: process, Send: send, Settle: settle}
	for i, stage := range way.Stages() {
		j.stages[i] = stage.Took
	}
	return j
}

// spread is what many values are like, in milliseconds.
type spread struct{ median, p95, mean float64 }

// spreadOf is of at least one value. Its percentiles are values of the list.
func spreadOf(values []float64) spread {
	sorted := slices.Sorted(slices.Values(values))
	at := func(part float64) float64 { return sorted[int(math.Ceil(part*float64(len(sorted))))-1] }
	sum := 0.0
	for _, v := range sorted {
		sum += v
	}
	return spread{at(0.5), at(0.95), sum / float64(len(sorted))}
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
