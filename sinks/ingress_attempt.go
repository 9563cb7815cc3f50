package sinks

import (
	"context"
	"fmt"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/proto"

	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/schemas/chipingress"
)

// maxIngressCalls bounds the calls that halving may add to one Send. To find an event
// takes 2·log2(1000) = 20; with very many at fault the next Send goes on where this one
// stopped, and the worker's backoff lies between them.
const maxIngressCalls = 128

// ingressAttempt is one Send. It belongs to the goroutine that called Send.
type ingressAttempt struct {
	sink    *Ingress
	ctx     context.Context
	lane    int
	items   []pipeline.Item
	results []pipeline.Result // of items, by position; Retry until known
	splits  int

	known  bool  // some item has a verdict other than Retry
	heard  bool  // some item's Retry is the endpoint's own word
	failed error // what stopped the attempt

	before   ingressSuspects // of the lane's previous Send
	suspects ingressSuspects // of this one
}

func (s *Ingress) newAttempt(ctx context.Context, lane int, items []pipeline.Item) *ingressAttempt {
	return &ingressAttempt{
		sink: s, ctx: ctx, lane: lane, items: items,
		results:  make([]pipeline.Result, len(items)),
		before:   s.laneSuspects(lane),
		suspects: make(ingressSuspects),
	}
}

// deliver sends a part of the items as one request, or as several where the answer
// asks for smaller ones, and reports whether what comes after it may be sent.
func (a *ingressAttempt) deliver(span ingressSpan) bool {
	response, err := a.sink.publish(a.ctx, a.lane, a.items[span.from:span.to])
	if err == nil {
		return a.judge(span, response.GetResults())
	}
	switch classifyIngress(err) {
	case ingressTooLarge:
		return a.halve(span, codeTooLarge, err)
	case ingressPoison:
		return a.halve(span, codeInvalidArgument, err)
	}
	if parts, found := a.sift(span); found {
		return a.deliverAll(parts)
	}
	a.failed = err
	return false
}

func (a *ingressAttempt) deliverAll(parts []ingressSpan) bool {
	for _, part := range parts {
		if !a.deliver(part) {
			return false
		}
	}
	return true
}

// sift refuses the events of a failed request that cannot be decoded, if there are any, and
// returns what lies between them. An endpoint cannot say which event it could not read: the
// request fails as a whole, with the status of some fault of its own, and would do so for ever.
func (a *ingressAttempt) sift(span ingressSpan) (parts []ingressSpan, found bool) {
	if a.ctx.Err() != nil {
		return nil, false
	}
	from := span.from
	for i := span.from; i < span.to; i++ {
		err := proto.Unmarshal(a.items[i].Encoded(), new(pb.CloudEvent))
		if err == nil {
			continue
		}
		a.refuse(i, codeMalformedEvent, err.Error())
		if from < i {
			parts = append(parts, ingressSpan{from, i})
		}
		from, found = i+1, true
	}
	if found && from < span.to {
		parts = append(parts, ingressSpan{from, span.to})
	}
	return parts, found
}

// halve sends both halves of a request that was answered with code, or refuses its
// only event.
func (a *ingressAttempt) halve(span ingressSpan, code string, cause error) bool {
	if span.to-span.from == 1 {
		a.refuse(span.from, code, ingressStatus(cause).Message())
		return true
	}
	if a.splits == maxIngressCalls/2 {
		a.failed = fmt.Errorf("stopped after %d splits, to go on with the next try: %w", a.splits, cause)
		return false
	}
	a.splits++
	a.sink.metrics.split(a.ctx, code)
	middle := span.from + (span.to-span.from)/2
	return a.deliver(ingressSpan{span.from, middle}) && a.deliver(ingressSpan{middle, span.to})
}

// judge turns the results of a request into those of its items, and reports whether
// none is left to be retried.
func (a *ingressAttempt) judge(span ingressSpan, results []*chipingress.PublishResult) bool {
	want := span.to - span.from
	mismatched := max(len(results)-want, 0)
	complete, delivered := true, false
	for i := range want {
		var result *chipingress.PublishResult
		if i < len(results) {
			result = results[i]
		}
		item := span.from + i
		if problem := a.checkResult(item, result, len(results) == want); problem != "" {
			mismatched++
			a.results[item].Reason = problem
			a.heard = true
		} else {
			a.take(item, result.GetError())
		}
		complete = complete && a.results[item].Verdict != pipeline.Retry
		delivered = delivered || a.results[item].Verdict == pipeline.Delivered
	}
	if delivered {
		a.sink.delivered.Store(time.Now().UnixNano())
	}
	if mismatched > 0 {
		a.sink.metrics.mismatch(a.ctx, mismatched)
	}
	return complete
}

// checkResult says why a result is no answer to the item in its place, or nothing. A
// result without an id counts by position alone, where each event has one.
func (a *ingressAttempt) checkResult(item int, result *chipingress.PublishResult, oneEach bool) string {
	if result == nil {
		return "the endpoint's response has no result for the event"
	}
	if result.GetEventId() == "" && oneEach {
		return ""
	}
	if result.GetEventId() != string(ingressEventID(a.items[item].Encoded())) {
		return "the endpoint's result in the event's place is of another event"
	}
	return ""
}

// take applies the endpoint's word on one event.
func (a *ingressAttempt) take(item int, failure *chipingress.PublishError) {
	if failure == nil {
		a.results[item] = pipeline.Result{Verdict: pipeline.Delivered}
		a.known = true
		return
	}
	name := ingressErrorName(failure.GetErrorCode())
	if name == "UNKNOWN" && !a.giveUp(item) {
		a.results[item].Reason = ingressReason("UNKNOWN: " + failure.GetReason())
		a.heard = true
		return
	}
	a.refuse(item, name, failure.GetReason())
}

func (a *ingressAttempt) refuse(item int, code, reason string) {
	a.results[item] = pipeline.Result{Verdict: pipeline.Refused, Code: code, Reason: ingressReason(reason)}
	a.known = true
}

// giveUp reports whether an event answered UNKNOWN again has been so for long enough,
// by an endpoint that is otherwise well: the last tenth of that time saw a delivery.
func (a *ingressAttempt) giveUp(item int) bool {
	limit := a.sink.cfg.UnknownFor
	if limit == 0 {
		return false
	}
	now := time.Now()
	since, again := a.before[a.key(item)]
	if again && now.Sub(since) >= limit && now.Sub(time.Unix(0, a.sink.delivered.Load())) < limit/10 {
		return true
	}
	if !again {
		a.suspects[a.key(item)] = now
	}
	return false
}

func (a *ingressAttempt) key(item int) ingressEventKey {
	return ingressEventKey{a.items[item].Batch.ID, a.items[item].Index}
}

// remember keeps the time of every suspect that still waits, so that a request which
// failed for another reason does not make it young again.
func (a *ingressAttempt) remember() {
	if len(a.before) > 0 {
		for i, result := range a.results {
			since, suspect := a.before[a.key(i)]
			if suspect && result.Verdict == pipeline.Retry {
				a.suspects[a.key(i)] = since
			}
		}
	}
	a.sink.setSuspects(a.lane, a.suspects)
}

// outcome is what Send returns: an error only where no event has a word of its own.
func (a *ingressAttempt) outcome() ([]pipeline.Result, error) {
	if a.failed != nil && !a.known && !a.heard {
		return nil, fmt.Errorf("ingress sink: %w", a.failed)
	}
	reason := "waits for an event before it"
	if a.failed != nil {
		reason = ingressReason(a.failed.Error())
	}
	for i, result := range a.results {
		if result.Verdict == pipeline.Retry && result.Reason == "" {
			a.results[i].Reason = reason
		}
	}
	return a.results, nil
}
