package journey

import (
	"time"

	"github.com/waybillhq/waybill/internal/collector"
)

// The stages of an event's way to a sink, in their order. They follow one another without a gap:
// what a stage takes is from the end of the one before it. Where two things go on at once, the
// time is the one's that the event waits for.
const (
	Wait       = "wait"       // from the request's beginning to that of its transaction
	Commit     = "commit"     // the transaction
	Publish    = "publish"    // until the queue has the message, as ingest hears, or a forwarder has it
	Retransmit = "retransmit" // until a janitor has published it again; of events that were lost from the queue only
	Queue      = "queue"      // until a forwarder has it
	Gather     = "gather"     // until the request that the sink took began: company, a slot, earlier tries
	Send       = "send"       // that request
	Receipt    = "receipt"    // until the receipt is stored
	Settle     = "settle"     // until the transaction that settles it has committed
)

// Stage is one of them.
type Stage struct {
	Name  string
	Start time.Time
	Took  time.Duration
}

// End is when the stage ends and the next begins.
func (s Stage) End() time.Time { return s.Start.Add(s.Took) }

// Way are the spans by which an event's way to one sink is measured. nil is one that has not come.
type Way struct {
	Accept, Commit, Publish *collector.Span // Publish is the first one
	Again                   *collector.Span // the publishing that was delivered, where that is another
	Process, Send, Settle   *collector.Span
}

// Stages returns the stages, in their order, as far as the spans are there. Without those of the
// acceptance they begin with the publishing.
func (w *Way) Stages() []Stage {
	ends := w.ends()
	if len(ends) == 0 {
		return nil
	}
	at := ends[0].at
	var out []Stage
	for _, end := range ends[1:] {
		if end.at.IsZero() {
			break
		}
		s := Stage{Name: end.stage, Start: at}
		if end.at.After(at) { // what ends before its beginning went on beside the stage before it
			s.Took = end.at.Sub(at)
			at = end.at
		}
		out = append(out, s)
	}
	return out
}

// end is where a stage ends; zero: it is not known.
type end struct {
	stage string
	at    time.Time
}

// ends begins with the beginning of the first stage.
func (w *Way) ends() (ends []end) {
	switch {
	case w.Accept != nil && w.Commit != nil:
		ends = []end{{"", w.Accept.Start}, {Wait, w.Commit.Start}, {Commit, w.Commit.End}}
	case w.Publish != nil:
		ends = []end{{"", w.Publish.Start}}
	default:
		return nil
	}
	// A forwarder may have the message before who published it hears that it is stored.
	if w.Again == nil {
		ends = append(ends, end{Publish, earlier(endOf(w.Publish), startOf(w.Process))})
	} else {
		ends = append(ends, end{Publish, endOf(w.Publish)}, end{Retransmit, earlier(w.Again.End, startOf(w.Process))})
	}
	return append(ends, end{Queue, startOf(w.Process)}, end{Gather, startOf(w.Send)}, end{Send, endOf(w.Send)},
		end{Receipt, earlier(endOf(w.Process), endOf(w.Settle))}, end{Settle, endOf(w.Settle)})
}

func startOf(s *collector.Span) time.Time {
	if s == nil {
		return time.Time{}
	}
	return s.Start
}

func endOf(s *collector.Span) time.Time {
	if s == nil {
		return time.Time{}
	}
	return s.End
}

// earlier is the earlier of two times; one that is not known does not count.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
