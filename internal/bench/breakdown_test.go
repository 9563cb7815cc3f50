package bench

import (
	"math"
	"testing"
	"time"

	"github.com/waybillhq/waybill/internal/collector"
	stages "github.com/waybillhq/waybill/internal/journey"
)

// spansOf are those of an event that the sink ingress took at its second try. The forwarder had
// the message before ingest heard that it was stored.
func spansOf(l *ledger, trace string, event int64) []collector.Span {
	span := func(op, sink string, from, to int) collector.Span {
		return collector.Span{
			TraceID: trace, Start: l.began.Add(time.Duration(from) * time.Millisecond), End: l.began.Add(time.Duration(to) * time.Millisecond),
			Attributes: map[string]string{
				"messaging.operation.name": op, "waybill.sink": sink, "messaging.batch.message_count": "4",
				"messaging.message.conversation_id": l.idOf(event),
			},
		}
	}
	settle := span("settle", ingressSink, 48, 50)
	delete(settle.Attributes, "messaging.message.conversation_id")
	return []collector.Span{
		settle, span("send", ingressSink, 30, 40), span("send", ingressSink, 15, 20), span("process", ingressSink, 12, 45),
		span("publish", "", 8, 13), span("commit", "", 3, 8), span("accept", "", 0, 9),
	}
}

func TestStagesFollowOneAnother(t *testing.T) {
	l := newLedger(time.Now())
	event := mustAccept(t, l, 2)
	spans := append(spansOf(l, "one", event), spansOf(l, "two", event+1)[1:]...) // the second is not settled
	bySink, odd := journeys(l, spans)
	if odd != 0 || len(bySink) != 1 || len(bySink[ingressSink]) != 1 {
		t.Fatalf("%v, %d odd; want one journey, to ingress", bySink, odd)
	}
	j := bySink[ingressSink][0]
	want := map[string]int{stages.Wait: 3, stages.Commit: 5, stages.Publish: 4, stages.Queue: 0, stages.Gather: 18, stages.Send: 10, stages.Receipt: 5, stages.Settle: 5}
	for i, name := range stageNames {
		if got := j.stages[i]; got != time.Duration(want[name])*time.Millisecond {
			t.Errorf("%s took %v, want %d ms", name, got, want[name])
		}
	}
	if total := j.sum(0, len(stageNames)); total != 50*time.Millisecond || j.event != event || j.batch != 4 {
		t.Errorf("event %d of a batch of %d took %v, want event %d, 4 and 50 ms", j.event, j.batch, total, event)
	}
	if got := j.sum(stagesToAnswer, stagesToDelivery); got != 32*time.Millisecond {
		t.Errorf("from the commit to the delivery: %v, want 32 ms", got)
	}
}

func TestWhatIsDoneTwiceHasNoStages(t *testing.T) {
	l := newLedger(time.Now())
	event := mustAccept(t, l, 1)
	for _, again := range []int{3, 4} { // process, publish
		spans := spansOf(l, "one", event)
		bySink, odd := journeys(l, append(spans, spans[again]))
		if odd != 1 || len(bySink) != 0 {
			t.Errorf("%s twice: %v, %d odd", spans[again].Attributes["messaging.operation.name"], bySink, odd)
		}
	}
}

func TestSpread(t *testing.T) {
	var values []float64
	for i := 100; i > 0; i-- {
		values = append(values, float64(i))
	}
	if got := spreadOf(values); got != (spread{50, 95, 50.5}) {
		t.Errorf("%+v", got)
	}
	if got := spreadOf([]float64{7}); got != (spread{7, 7, 7}) {
		t.Errorf("%+v", got)
	}
	one := journey{batch: 1, stages: [8]time.Duration{9, time.Millisecond}}
	four := journey{batch: 4, stages: [8]time.Duration{9, 6 * time.Millisecond}}
	// Four events of one batch, and one of another: each batch counts once.
	if got := meanOfBatches([]journey{one, four, four, four, four}); math.Abs(got-3.5) > 1e-9 {
		t.Errorf("the mean over batches is %v, want 3.5", got)
	}
}

func TestTooFewAreTracedToCostMuch(t *testing.T) {
	for _, c := range []struct{ rate, want float64 }{{25, 1}, {1000, 0.05}, {10_000, 0.005}, {0, 0.005}} {
		if got := tracedRatio(Load{Rate: c.rate}); got != c.want {
			t.Errorf("%g events/s: %g, want %g", c.rate, got, c.want)
		}
	}
}
