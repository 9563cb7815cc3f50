package audit

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/waybillhq/waybill/internal/roundtrip"
	"github.com/waybillhq/waybill/pipeline"
)

// healthy is a run of three keys with five events each, in batches of one, that went well.
func healthy() Evidence {
	e := Evidence{
		Archive: "archive", Sinks: map[string][]roundtrip.Delivery{}, Retransmitted: map[int64]bool{},
		Codes: []string{"VALIDATION_FAILED"},
	}
	for k := range 3 {
		source, typ := fmt.Sprintf("/s/%d", k), "t"
		for n := range 5 {
			id := fmt.Sprintf("%d-%d", k, n)
			batch := int64(k*5 + n + 1)
			e.Sent = append(e.Sent, roundtrip.Entry{Source: source, Type: typ, ID: id, DataCRC32C: uint32(batch), Accepted: true})
			d := roundtrip.Delivery{Source: source, Type: typ, ID: id, Seqnum: int64(n + 1), DataCRC32C: uint32(batch)}
			e.Sinks["ingress"] = append(e.Sinks["ingress"], d)
			d.Lane, d.Offset, d.Position = k, int64(n), pipeline.Position(batch, 0)
			e.Sinks["archive"] = append(e.Sinks["archive"], d)
		}
		e.Heads = append(e.Heads, Head{Source: source, Type: typ, Seqnum: 5})
	}
	return e
}

// move puts the event at from behind the one at to.
func move(list []roundtrip.Delivery, from, to int) []roundtrip.Delivery {
	d := list[from]
	list = slices.Delete(list, from, from+1)
	return slices.Insert(list, to, d)
}

func remove(e *Evidence, sink string, index int) {
	e.Sinks[sink] = slices.Delete(e.Sinks[sink], index, index+1)
}

func letterOf(e *Evidence, index int, code string) Letter {
	d := e.Sinks["archive"][index]
	return Letter{Sink: "ingress", Code: code, Source: d.Source, Type: d.Type, ID: d.ID, Seqnum: d.Seqnum, Position: d.Position}
}

func TestCompareFindsWhatIsWrong(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(*Evidence)
		want  []string // parts of the violations; none: there is no violation
	}{
		{"nothing", func(*Evidence) {}, nil},
		{
			"an acknowledged event is lost to one sink",
			func(e *Evidence) { remove(e, "ingress", 2) },
			[]string{"1 acknowledged events are lost to ingress", "1 seqnums are missing in ingress"},
		},
		{
			"an acknowledged event is nowhere",
			func(e *Evidence) {
				remove(e, "ingress", 14)
				remove(e, "archive", 14)
			},
			[]string{"lost to archive", "missing in archive", "lost to ingress", "missing in ingress"},
		},
		{
			"an acknowledged event was never stored",
			func(e *Evidence) {
				e.Sent = append(e.Sent, roundtrip.Entry{Source: "/s/0", Type: "t", ID: "x", Accepted: true})
			},
			[]string{"1 acknowledged events are lost to archive", "1 acknowledged events are lost to ingress"},
		},
		{
			"an event that was stored without a word is lost to a sink",
			func(e *Evidence) {
				e.Sent[4].Accepted, e.Sent[4].Unknown = false, 1
				remove(e, "archive", 4)
			},
			[]string{"1 events were offered and never accepted", "1 seqnums are missing in archive"},
		},
		{
			"the archive has an event twice",
			func(e *Evidence) {
				d := e.Sinks["archive"][14]
				d.Offset++
				e.Sinks["archive"] = append(e.Sinks["archive"], d)
			},
			[]string{"1 events are in archive twice"},
		},
		{
			"the endpoint has an event twice, because a response was lost",
			func(e *Evidence) {
				d := e.Sinks["ingress"][3]
				d.At = time.Unix(105, 0)
				e.Doubling = []Window{{time.Unix(100, 0), time.Unix(110, 0)}}
				e.Sinks["ingress"] = append(e.Sinks["ingress"], d)
			},
			nil,
		},
		{
			"the endpoint has an event twice, and nothing explains it",
			func(e *Evidence) {
				d := e.Sinks["ingress"][3]
				d.At = time.Unix(111, 0)
				e.Doubling = []Window{{time.Unix(100, 0), time.Unix(110, 0)}}
				e.Sinks["ingress"] = append(e.Sinks["ingress"], d)
			},
			[]string{"1 events came to ingress again"},
		},
		{
			"a lane of the archive has a hole",
			func(e *Evidence) { e.Sinks["archive"][14].Offset = 7 },
			[]string{"1 offsets of archive are not dense"},
		},
		{
			"a seqnum was given out and no event has it",
			func(e *Evidence) { e.Heads[1].Seqnum = 6 },
			[]string{"1 seqnums are missing in archive", "1 seqnums are missing in ingress"},
		},
		{
			"two events have one seqnum",
			func(e *Evidence) { e.Sinks["ingress"][1].Seqnum = 1 },
			[]string{"1 seqnums belong to two events"},
		},
		{
			"a seqnum was delivered that was not given out",
			func(e *Evidence) {
				e.Sinks["ingress"][4].Seqnum = 9
				e.Sent[4].Unknown = 1
			},
			[]string{"deliveries are of events that were not sent so", "1 seqnums are missing in ingress"},
		},
		{
			"an event was stored twice without a cause",
			func(e *Evidence) {
				e.Heads[0].Seqnum = 6
				for _, sink := range []string{"ingress", "archive"} {
					d := e.Sinks[sink][4]
					d.Seqnum, d.Offset, d.Position = 6, 5, d.Position+1
					e.Sinks[sink] = slices.Insert(e.Sinks[sink], 5, d)
				}
			},
			[]string{"1 copies of events were stored although nothing explains them"},
		},
		{
			"an event was stored twice because its producer did not know, and nothing remembers",
			func(e *Evidence) {
				e.Forgets = true
				e.Heads[0].Seqnum, e.Sent[4].Unknown = 6, 1
				for _, sink := range []string{"ingress", "archive"} {
					d := e.Sinks[sink][4]
					d.Seqnum, d.Offset, d.Position = 6, 5, d.Position+1
					e.Sinks[sink] = slices.Insert(e.Sinks[sink], 5, d)
				}
			},
			nil,
		},
		{
			"an event was stored twice although events are remembered",
			func(e *Evidence) {
				e.Heads[0].Seqnum, e.Sent[4].Unknown = 6, 1
				for _, sink := range []string{"ingress", "archive"} {
					d := e.Sinks[sink][4]
					d.Seqnum, d.Offset, d.Position = 6, 5, d.Position+1
					e.Sinks[sink] = slices.Insert(e.Sinks[sink], 5, d)
				}
			},
			[]string{"1 copies of events were stored although nothing explains them"},
		},
		{
			"an event came late without having been retransmitted",
			func(e *Evidence) { e.Sinks["ingress"] = move(e.Sinks["ingress"], 1, 3) },
			[]string{"1 events came to ingress out of order"},
		},
		{
			"an event came late because it was retransmitted",
			func(e *Evidence) {
				e.Sinks["ingress"] = move(e.Sinks["ingress"], 1, 3)
				e.Retransmitted[2] = true
			},
			nil,
		},
		{
			"an event was refused",
			func(e *Evidence) {
				e.Letters = append(e.Letters, letterOf(e, 2, "VALIDATION_FAILED"))
				remove(e, "ingress", 2)
			},
			nil,
		},
		{
			"an event became a dead letter for a reason that nothing explains",
			func(e *Evidence) {
				e.Letters = append(e.Letters, letterOf(e, 2, "expired"))
				remove(e, "ingress", 2)
			},
			[]string{"1 dead letters of ingress have the code expired"},
		},
		{
			"a dead letter of one sink does not stand for another",
			func(e *Evidence) {
				e.Letters = append(e.Letters, letterOf(e, 2, "VALIDATION_FAILED"))
				remove(e, "ingress", 2)
				e.Sinks["archive"][4].Offset--
				e.Sinks["archive"][3].Offset--
				remove(e, "archive", 2)
			},
			[]string{"1 acknowledged events are lost to archive", "1 seqnums are missing in archive"},
		},
		{
			"the data of an event was changed",
			func(e *Evidence) { e.Sinks["archive"][0].DataCRC32C++ },
			[]string{"1 deliveries are of events that were not sent so"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := healthy()
			test.spoil(&e)
			got := Compare(e).Violations(e)
			if len(test.want) == 0 && len(got) > 0 {
				t.Errorf("violations %q, want none", got)
			}
			for _, want := range test.want {
				if !slices.ContainsFunc(got, func(v string) bool { return strings.Contains(v, want) }) {
					t.Errorf("violations %q lack %q", got, want)
				}
			}
		})
	}
}

func TestCompareCounts(t *testing.T) {
	e := healthy()
	e.Sinks["ingress"] = append(e.Sinks["ingress"], e.Sinks["ingress"][3], e.Sinks["ingress"][3])
	e.Sinks["ingress"] = move(e.Sinks["ingress"], 0, 2)
	e.Retransmitted[1] = true
	r := Compare(e)
	if r.Offered != 15 || r.Acknowledged != 15 || r.Stored != 15 {
		t.Errorf("%+v", r)
	}
	s := r.Sinks["ingress"]
	if s.Delivered != 15 || s.Doubled != 2 || s.OutOfOrder != 1 || s.Unexplained != 0 {
		t.Errorf("%+v", s)
	}
}

// A part of the evidence has what is about its keys, and nothing else.
func TestEvidenceOfSomeKeys(t *testing.T) {
	e := healthy()
	e.Letters = append(e.Letters, letterOf(&e, 0, "VALIDATION_FAILED"), letterOf(&e, 7, "VALIDATION_FAILED"))
	remove(&e, "ingress", 7)
	remove(&e, "ingress", 0)
	remove(&e, "ingress", 12) // the last event of the third key is lost
	for key, want := range map[string]struct{ letters, lost int }{"/s/0": {1, 0}, "/s/1": {1, 0}, "/s/2": {0, 1}} {
		part := e.Of(func(source, typ string) bool { return source == key && typ == "t" })
		r := Compare(part)
		if r.Offered != 5 || r.Stored != 5 || r.Wrong != 0 || len(part.Letters) != want.letters || r.Sinks["ingress"].Lost != want.lost || r.Sinks["archive"].Delivered != 5 {
			t.Errorf("%s: %+v", key, r)
		}
	}
	if r := Compare(e); r.Offered != 15 || r.Sinks["ingress"].Lost != 1 {
		t.Errorf("the whole was changed: %+v", r)
	}
}
