package pipeline

import (
	"encoding/json"
	"slices"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// maxTracedReceipt is how many sampled events the receipts of one request name: about 24 KiB.
const maxTracedReceipt = 256

// TracedEvent is an event of a batch whose settling is to be traced.
type TracedEvent struct {
	Index  int    `json:"index"`
	Parent string `json:"traceparent"` // the span of the event's processing
}

// tracedEvents are those of a receipt. In a form that is not understood, such as a later version's,
// they are none: a receipt counts without them.
type tracedEvents []TracedEvent

// UnmarshalJSON implements json.Unmarshaler.
func (t *tracedEvents) UnmarshalJSON(data []byte) error {
	var events []TracedEvent
	if json.Unmarshal(data, &events) == nil {
		*t = events
	}
	return nil
}

// tracedItem is a sampled event of a request.
type tracedItem struct {
	*tracedEvent
	at, owner    int // indexes into the request's items, and into held
	self, parent trace.SpanContext
	result       Result // of the newest try
}

// took notes the sampled events of the message that was added to a request. One that no span
// published has none: ingest decides, and the others follow.
func (t *Tracing) took(r *request) {
	if t == nil {
		return
	}
	owner := len(r.held) - 1
	b := r.held[owner].batch
	published, ok := parseTraceparent(b.hop)
	if !ok {
		return
	}
	first := len(r.items) - len(b.Events)
	for _, m := range t.members(b.Events) {
		r.traced = append(r.traced, tracedItem{
			tracedEvent: m.tracedEvent, at: first + m.index, owner: owner,
			self: newSpanContext(m.trace), parent: memberSpan(published, b.count, m.tracedEvent, m.index),
		})
	}
}

// sent makes the spans of one try of the pending items of a request. results are as many, unless
// err is set.
func (t *Tracing) sent(sink string, r *request, pending []int, start time.Time, results []Result, err error) {
	if t == nil || len(r.traced) == 0 {
		return
	}
	end := time.Now()
	for i := range r.traced {
		item := &r.traced[i]
		at, ok := slices.BinarySearch(pending, item.at)
		if !ok {
			continue
		}
		item.result = Result{Verdict: Retry}
		if err == nil {
			item.result = results[at]
		}
		t.emit(pastSpan{
			name: "send " + sink, kind: trace.SpanKindClient, self: newSpanContext(item.trace), parent: item.self,
			start: start, end: end, failure: item.failure(),
			attributes: item.attributes("send", append(item.outcome(sink), semconv.MessagingBatchMessageCount(len(pending)))...),
		})
	}
}

// outcome are the attributes that say what the sink did with the event.
func (i *tracedItem) outcome(sink string) []attribute.KeyValue {
	out := []attribute.KeyValue{attributeSink.String(sink), attributeOutcome.String(outcomes[i.result.Verdict])}
	if i.result.Verdict == Refused {
		out = append(out, attributeRefusal.String(plainText(i.result.Code, maxRefusalCode)))
	}
	return out
}

var outcomes = map[Verdict]string{Delivered: "delivered", Refused: "refused", Retry: "not taken"}

func (i *tracedItem) failure() string {
	if i.result.Verdict == Delivered {
		return ""
	}
	return outcomes[i.result.Verdict]
}

// processed makes the spans of a request that is done with: from a message's arrival until its
// receipt is stored, or the lane is given up.
func (t *Tracing) processed(sink string, lane int, r *request) {
	if t == nil || len(r.traced) == 0 {
		return
	}
	end := time.Now()
	for i := range r.traced {
		item := &r.traced[i]
		h := r.held[item.owner]
		t.emit(pastSpan{
			name: "process " + sink, kind: trace.SpanKindConsumer, self: item.self, parent: item.parent,
			start: h.arrived, end: end, failure: item.failure(),
			attributes: item.attributes("process", append(item.outcome(sink), semconv.MessagingOperationTypeProcess,
				semconv.MessagingDestinationName(EventsStream), semconv.MessagingDestinationPartitionID(strconv.Itoa(lane)),
				semconv.MessagingConsumerGroupName(consumerName(sink, lane)),
				attributeBatch.String(h.batch.ID.String()), attributeAttempt.Int(h.batch.Attempt))...),
		})
	}
}

// nameTraced puts the sampled events of a request into its receipts, one for each batch.
func (r *request) nameTraced(receipts []BatchReceipt) {
	for i := range r.traced[:min(len(r.traced), maxTracedReceipt)] {
		item := &r.traced[i]
		receipt := &receipts[item.owner]
		receipt.Traced = append(receipt.Traced, TracedEvent{Index: r.items[item.at].Index, Parent: formatTraceparent(item.self)})
	}
}
