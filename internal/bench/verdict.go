package bench

import (
	"fmt"
	"strings"
)

// Names of the sinks of a system.
const (
	ingressSink = "ingress"
	archiveSink = "archive"

	// queueReplay is no sink: what the stream keeps of what was accepted.
	queueReplay = "queue replay"
)

// Verdict is what one sink has of what a system accepted.
type Verdict struct {
	System string `json:"system"`
	Sink   string `json:"sink"`
	// Accepted = Delivered + Pending + DeadLetters + Lost, event by event.
	Accepted    int64 `json:"accepted"`
	Delivered   int64 `json:"delivered"`
	Pending     int64 `json:"pending"`
	DeadLetters int64 `json:"dead_letters"`
	Lost        int64 `json:"lost"`
	// Doubled counts deliveries beyond the first of an event.
	Doubled int64 `json:"doubled"`
	// Retransmits counts the events that janitors published again, which the stream has and the
	// endpoint may get twice; nothing else may lead to doubles, and the archive has none.
	Retransmits int64 `json:"retransmits"`
	// Unknown counts events whose call came to no answer, Stored those of them that the
	// sink has; none of them is accepted.
	Unknown int64 `json:"unknown"`
	Stored  int64 `json:"unknown_delivered"`
	// Refused counts events that ingest refused, Surprising those of them that the sink
	// has all the same.
	Refused    int64 `json:"refused"`
	Surprising int64 `json:"refused_delivered"`
	// Misjudged counts events that ingest refused although they are valid, or accepted
	// although they are not.
	Misjudged int64 `json:"misjudged"`
	// Heads is what the seqnums are like, where the scenario looks at them.
	Heads *HeadsVerdict `json:"heads,omitempty"`
	// Unchecked says why the sink could not be looked at; empty: it was.
	Unchecked string `json:"unchecked,omitempty"`
	// Examples are the first few faults, for people.
	Examples []string `json:"examples,omitempty"`
}

// OK reports whether nothing is lost, judged wrongly, delivered in spite of a refusal, or
// doubled without a reason, and seqnums have neither forks nor gaps.
func (v Verdict) OK() bool {
	explained := int64(0)
	if v.Sink == ingressSink || v.Sink == queueReplay {
		explained = v.Retransmits
	}
	return v.Lost == 0 && v.Doubled <= explained && v.Surprising == 0 && v.Misjudged == 0 && v.Heads.OK()
}

// String is the line of a report.
func (v Verdict) String() string {
	if v.Unchecked != "" {
		return fmt.Sprintf("%s %s: not checked: %s", v.System, v.Sink, v.Unchecked)
	}
	word := "ok"
	if !v.OK() {
		word = "NOT OK"
	}
	line := fmt.Sprintf("%s %s: %s: accepted %d = delivered %d + pending %d + dead letters %d; lost %d, doubled %d",
		v.System, v.Sink, word, v.Accepted, v.Delivered, v.Pending, v.DeadLetters, v.Lost, v.Doubled)
	if v.Retransmits > 0 {
		line += fmt.Sprintf(", retransmitted %d", v.Retransmits)
	}
	if v.Misjudged > 0 {
		line += fmt.Sprintf(", judged wrongly by ingest %d", v.Misjudged)
	}
	if v.Unknown+v.Refused > 0 {
		line += fmt.Sprintf("; unknown %d (%d delivered), refused %d (%d delivered)", v.Unknown, v.Stored, v.Refused, v.Surprising)
	}
	if v.Heads != nil {
		line += "; " + v.Heads.String()
	}
	if len(v.Examples) > 0 {
		line += "\n  " + strings.Join(v.Examples, "\n  ")
	}
	return line
}

// judge compares what was accepted with what a sink has. The marks isPending and isDead are
// those of this sink.
func (l *ledger) judge(system, sink string) Verdict {
	has := func(arrived tick, _ uint32) bool { return arrived != 0 }
	if sink == archiveSink {
		has = func(_ tick, marks uint32) bool { return marks&isArchived != 0 }
	}
	v := l.judgeBy(Verdict{System: system, Sink: sink, Doubled: l.doubledIn(sink)}, has)
	v.Misjudged = l.misjudged.Load()
	return v
}

// judgeBy is judge of what has an event where it says so. It completes v, which names it and
// says what is doubled.
func (l *ledger) judgeBy(v Verdict, holds func(arrived tick, marks uint32) bool) Verdict {
	l.each(0, l.reserved.Load(), func(event int64, _, accepted, arrived tick, marks uint32) {
		has := holds(arrived, marks)
		switch {
		case accepted != 0:
			v.Accepted++
			switch {
			case has:
				v.Delivered++
			case marks&isPending != 0:
				v.Pending++
			case marks&isDead != 0:
				v.DeadLetters++
			default:
				v.Lost++
				l.fault("%s: event %s was accepted and is lost", v.Sink, l.idOf(event))
			}
		case marks&isUnknown != 0:
			v.Unknown++
			if has {
				v.Stored++
			}
		case marks&isRefused != 0:
			v.Refused++
			if has {
				v.Surprising++
				l.fault("%s: event %s was refused and delivered all the same", v.Sink, l.idOf(event))
			}
		}
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, fault := range l.faults {
		if strings.HasPrefix(fault, v.Sink) {
			v.Examples = append(v.Examples, fault)
		}
	}
	return v
}

func (l *ledger) doubledIn(sink string) int64 {
	if sink == archiveSink {
		return l.doubledArchive.Load()
	}
	return l.doubled.Load()
}
