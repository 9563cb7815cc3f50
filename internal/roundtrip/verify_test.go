package roundtrip

import (
	"errors"
	"iter"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/waybillhq/waybill/internal/cloudevent"
)

// sentLedger is a ledger of n accepted events.
func sentLedger(n int) *Ledger {
	plan := DefaultPlan("test", n)
	plan.Sources, plan.Types = 2, 1
	l := newLedger(plan)
	for i := range l.sent {
		l.sent[i] = entry{checksum: checksum(cloudevent.Data(plan.Event(i))), accepted: true}
	}
	return l
}

// delivered is what a sink has that got every event of the ledger once, in order.
func delivered(l *Ledger) []Delivery {
	next := map[keyName]int64{}
	var out []Delivery
	for i := range l.sent {
		source, typ := l.plan.keyOf(i)
		next[keyName{source, typ}]++
		out = append(out, Delivery{
			Source: source, Type: typ, ID: l.plan.id(i), Seqnum: next[keyName{source, typ}], DataCRC32C: l.sent[i].checksum,
		})
	}
	return out
}

func seq(deliveries []Delivery) iter.Seq2[Delivery, error] {
	return func(yield func(Delivery, error) bool) {
		for _, d := range deliveries {
			if !yield(d, nil) {
				return
			}
		}
	}
}

func verify(t *testing.T, l *Ledger, deliveries []Delivery) Report {
	t.Helper()
	r, err := l.Verify("sink", seq(deliveries))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestVerifyFindsNothingWrong(t *testing.T) {
	l := sentLedger(40)
	foreign := Delivery{Source: "/somebody/else", Type: "t", ID: "x"}
	for range 2 { // the second is held against the first
		r := verify(t, l, append(delivered(l), foreign))
		if !r.OK() || r.Accepted != 40 || r.Delivered != 40 || len(r.Examples) > 0 {
			t.Errorf("%+v", r)
		}
	}
}

func TestVerifyReports(t *testing.T) {
	// The first two events of one key, and where they are.
	first, second := 0, 0
	for i, d := range delivered(sentLedger(40)) {
		if d.Seqnum == 2 && second == 0 {
			second = i
		}
	}
	whole := delivered(sentLedger(40))
	first = slices.IndexFunc(whole, func(d Delivery) bool { return d.Source == whole[second].Source && d.Seqnum == 1 })
	for _, test := range []struct {
		name    string
		ledger  func(*Ledger)
		change  func([]Delivery) []Delivery
		want    Report // the counts that are not those of a perfect sink
		example string
	}{
		{"missing last", nil, func(d []Delivery) []Delivery { return d[:39] }, Report{Missing: 1}, "test-39 is missing"},
		{"missing", nil, func(d []Delivery) []Delivery { return slices.Delete(d, first, first+1) }, Report{Missing: 1, Gaps: 1}, "is missing"},
		{"double", nil, func(d []Delivery) []Delivery { return append(d, d[first]) }, Report{Double: 1}, "came again"},
		{"out of order", nil, func(d []Delivery) []Delivery {
			d[first], d[second] = d[second], d[first]
			return d
		}, Report{OutOfOrder: 1}, "came after seqnum 2"},
		{"other data", nil, func(d []Delivery) []Delivery { d[39].DataCRC32C++; return d }, Report{Wrong: 1, Missing: 1}, "has data with checksum"},
		{"other type", nil, func(d []Delivery) []Delivery { d[39].Type = "other"; return d }, Report{Wrong: 1, Missing: 1}, "was sent as"},
		{"other source", nil, func(d []Delivery) []Delivery { d[39].Source += "0"; return d }, Report{Wrong: 1, Missing: 1}, "was sent as"},
		{"no seqnum", nil, func(d []Delivery) []Delivery { d[39].Seqnum = 0; return d }, Report{Wrong: 1, Missing: 1}, "begin at 1"},
		{"fork", nil, func(d []Delivery) []Delivery { d[second].Seqnum = 1; return d }, Report{Wrong: 1, Missing: 1, Gaps: 1}, "both have the seqnum 1"},
		{"never sent", nil, func(d []Delivery) []Delivery {
			return append(d, Delivery{Source: d[0].Source, Type: d[0].Type, ID: "test-40", Seqnum: 100})
		}, Report{Wrong: 1}, "never sent"},
		{
			"refused", func(l *Ledger) { l.sent[39] = entry{checksum: l.sent[39].checksum, err: errors.New("no")} }, func(d []Delivery) []Delivery { return d },
			Report{Wrong: 1, Accepted: -1, Delivered: -1},
			"was refused and is there",
		},
		{"stored twice", nil, storedTwice, Report{Double: 1}, "was stored 2 times"},
		{"stored twice after an unanswered try", func(l *Ledger) { l.sent[39].unknown = 1 }, storedTwice, Report{}, ""},
		{"skipped seqnum", nil, func(d []Delivery) []Delivery { d[39].Seqnum++; return d }, Report{Gaps: 1}, "1 seqnums of"},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := sentLedger(40)
			deliveries := delivered(l)
			if test.ledger != nil {
				test.ledger(l)
			}
			got := verify(t, l, test.change(deliveries))
			want := test.want
			want.Sink, want.Accepted, want.Delivered = "sink", want.Accepted+40, want.Delivered+40-want.Missing
			examples := strings.Join(got.Examples, "\n")
			got.Examples = nil
			if !equal(got, want) || !strings.Contains(examples, test.example) {
				t.Errorf("got %+v with %q\nwant %+v with %q", got, examples, want, test.example)
			}
			if perfect := test.example == ""; got.OK() != perfect {
				t.Errorf("OK is %v", got.OK())
			}
		})
	}
}

// storedTwice has the last event under two seqnums.
func storedTwice(d []Delivery) []Delivery {
	again := d[39]
	again.Seqnum++
	return append(d, again)
}

func equal(a, b Report) bool {
	return a.Sink == b.Sink && a.Accepted == b.Accepted && a.Delivered == b.Delivered && a.Missing == b.Missing &&
		a.Double == b.Double && a.OutOfOrder == b.OutOfOrder && a.Wrong == b.Wrong && a.Gaps == b.Gaps
}

func TestVerifyComparesSinks(t *testing.T) {
	l := sentLedger(40)
	verify(t, l, delivered(l))
	swapped := delivered(l)
	a := slices.IndexFunc(swapped, func(d Delivery) bool { return d.Source == swapped[0].Source && d.Seqnum == 1 })
	b := slices.IndexFunc(swapped, func(d Delivery) bool { return d.Source == swapped[0].Source && d.Seqnum == 2 })
	// In order and without a gap, but not what the other sink says.
	swapped[a].Seqnum, swapped[b].Seqnum = 2, 1
	swapped[a], swapped[b] = swapped[b], swapped[a]
	if r := verify(t, l, swapped); r.Wrong != 2 || r.OutOfOrder != 0 {
		t.Errorf("%+v", r)
	}
}

func TestVerifyPassesAnErrorOn(t *testing.T) {
	broken := errors.New("broken")
	_, err := sentLedger(1).Verify("sink", func(yield func(Delivery, error) bool) { yield(Delivery{}, broken) })
	if !errors.Is(err, broken) {
		t.Error(err)
	}
}

func TestPlanIsTheSameEachTime(t *testing.T) {
	plan := DefaultPlan("run-1", 500)
	if err := plan.Validate(); err != nil {
		t.Fatal(err)
	}
	keys, sizes := map[string]bool{}, []int{}
	for i := range plan.Events {
		ce := plan.Event(i)
		if !proto.Equal(ce, plan.Event(i)) {
			t.Fatalf("event %d differs from itself", i)
		}
		source, typ := plan.keyOf(i)
		index, ok := plan.indexOf(ce.Id)
		if ce.Source != source || ce.Type != typ || index != i || !ok {
			t.Fatalf("event %d is %s of %s %s", i, ce.Id, ce.Source, ce.Type)
		}
		keys[source+typ] = true
		sizes = append(sizes, len(cloudevent.Data(ce)))
	}
	if len(keys) != 24 || slices.Min(sizes) < 99 || slices.Min(sizes) > 300 || slices.Max(sizes) > 20<<10 || slices.Max(sizes) < 15000 {
		t.Errorf("%d keys, %d to %d bytes", len(keys), slices.Min(sizes), slices.Max(sizes))
	}
	for _, id := range []string{"run-1-500", "run-1--1", "run-1-01", "run-2-1", "run-1-"} {
		if _, ok := plan.indexOf(id); ok {
			t.Errorf("%s passes for an event of the plan", id)
		}
	}
}

func TestLineData(t *testing.T) {
	for line, want := range map[string]string{
		`{"datacontenttype":"application/json","data":{"a": 9007199254740993}}`: `{"a": 9007199254740993}`,
		`{"datacontenttype":"text/plain","data":"a\n\"b\""}`:                    "a\n\"b\"",
		`{"datacontenttype":"application/octet-stream","data_base64":"AAH/"}`:   "\x00\x01\xff",
		`{"datacontenttype":"text/plain"}`:                                      "",
	} {
		got, err := lineData([]byte(line))
		if err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", line, got, err)
		}
	}
	for _, line := range []string{`{`, `{"datacontenttype":"text/plain","data":1}`} {
		if _, err := lineData([]byte(line)); err == nil {
			t.Errorf("%s passes", line)
		}
	}
}

func TestWriteTable(t *testing.T) {
	var out strings.Builder
	err := WriteTable(&out, []Report{
		{Sink: "ingress", Accepted: 10, Delivered: 10},
		{Sink: "archive", Accepted: 10, Delivered: 9, Missing: 1, Examples: []string{"archive: event x is missing"}},
	})
	want := `     sink  accepted  delivered  missing  double  out of order  wrong  gaps
  ingress        10         10        0       0             0      0     0
  archive        10          9        1       0             0      0     0
  archive: event x is missing
`
	if err != nil || out.String() != want {
		t.Errorf("%v\n%s", err, out.String())
	}
}
