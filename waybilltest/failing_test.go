package waybilltest_test

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/waybillhq/waybill/waybilltest"
)

// failing is a test that may fail.
type failing struct {
	testing.TB
	says string // what it failed with
}

func (f *failing) Fatalf(format string, args ...any) {
	f.says = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// mustFail runs what must fail a test, and returns what that says.
func mustFail(t *testing.T, run func(t testing.TB)) string {
	t.Helper()
	f := &failing{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		run(f)
	}()
	<-done
	if f.says == "" {
		t.Fatal("it did not fail")
	}
	return f.says
}

func mustSay(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("it does not say %q:\n%s", part, text)
		}
	}
}

// A failure says what came instead, what waits, what died and why.
func TestFailuresSayWhy(t *testing.T) {
	t.Parallel()
	w := waybilltest.Start(t, waybilltest.WithBehaviour(waybilltest.Behaviour{RefuseType: "refused"}))
	w.Emit(t,
		waybilltest.Event{ID: "17", Source: "/shop", Type: "order.created"},
		waybilltest.Event{ID: "18", Source: "/shop", Type: "order.cancelled"},
		waybilltest.Event{ID: "19", Source: "/shop", Type: "refused"})
	w.Expect(t, waybilltest.Filter{}, 2, patience)
	w.ExpectDeadLetters(t, waybilltest.Filter{}, 1, patience)
	w.ExpectArchived(t, waybilltest.Filter{}, 3, patience) // or the failures below could have fewer there
	created := waybilltest.Filter{Source: "/shop", Type: "order.created", Extensions: map[string]any{"a": 1}}
	within := 200 * time.Millisecond

	began := time.Now()
	text := mustFail(t, func(t testing.TB) { w.Expect(t, created, 2, within) })
	mustSay(t, text, `expected 2 events at the endpoint within 200ms (source "/shop", type "order.created", a 1): 0`,
		"2 do not match", `order.created "17" of /shop (seqnum 1)`, `order.cancelled "18" of /shop`, "3 events were accepted, of which 0 match",
		`dead letter: refused "19" of /shop (seqnum 1), of ingress: VALIDATION_FAILED: events of type "refused" are refused`, "the endpoint behaves as it was told: RefuseType: \"refused\"")
	if took := time.Since(began); took < within {
		t.Errorf("it gave up after %v", took)
	}
	text = mustFail(t, func(t testing.TB) { w.Expect(t, waybilltest.Filter{Type: "order.*"}, 1, patience) })
	mustSay(t, text, "expected 1 event at the endpoint", "): 2", "2 match")
	text = mustFail(t, func(t testing.TB) { w.Expect(t, waybilltest.Filter{ID: "17"}, 0, patience) })
	mustSay(t, text, "expected no events", `order.created "17"`)
	text = mustFail(t, func(t testing.TB) { w.ExpectAtLeast(t, waybilltest.Filter{}, 3, within) })
	mustSay(t, text, "expected at least 3 events", "(anything): 2", "of which 3 match; of these 1 event is a dead letter of ingress")
	w.ExpectAtLeast(t, waybilltest.Filter{}, 1, patience)
	text = mustFail(t, func(t testing.TB) { w.ExpectArchived(t, waybilltest.Filter{}, 4, 2*time.Second) })
	mustSay(t, text, "expected 4 events in the archive", ": 3")
	text = mustFail(t, func(t testing.TB) { w.ExpectDeadLetters(t, waybilltest.Filter{ID: "17"}, 1, within) })
	mustSay(t, text, "among the dead letters", "1 does not match", `"19"`)

	w.SetBehaviour(t, waybilltest.Behaviour{Down: true})
	w.Emit(t, waybilltest.Event{ID: "20", Source: "/shop", Type: "order.created"})
	eventually(t, "a failure says that the sink is down", func() bool { // the forwarder has to see it first
		text = mustFail(t, func(t testing.TB) { w.Expect(t, waybilltest.Filter{ID: "20"}, 1, 2*time.Second) })
		return strings.Contains(text, "sink ingress is down") && strings.Contains(text, "\n    lane ")
	})
	mustSay(t, text, "of which 1 matches; of these ingress lacks 1", "as it was told: Down: true", "\n  forwarder: delivery: sink ingress is down", "\n    lane ")
	w.SetBehaviour(t, waybilltest.Behaviour{})
	w.Expect(t, waybilltest.Filter{ID: "20"}, 1, patience)
}

// docs/testing.md shows a failure as it is.
func TestThePageShowsAFailure(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/testing.md")
	if err != nil {
		t.Fatal(err)
	}
	w := waybilltest.Start(t, waybilltest.WithBehaviour(waybilltest.Behaviour{RefuseType: "order.created"}))
	w.Emit(t,
		waybilltest.Event{ID: "17", Source: "/shop", Type: "order.created"},
		waybilltest.Event{ID: "18", Source: "/shop", Type: "order.cancelled"})
	w.ExpectDeadLetters(t, waybilltest.Filter{}, 1, patience)
	w.Expect(t, waybilltest.Filter{}, 1, patience)
	w.ExpectArchived(t, waybilltest.Filter{}, 2, patience) // or it would say that the archive lacks some
	text := mustFail(t, func(t testing.TB) { w.Expect(t, waybilltest.Filter{Type: "order.created"}, 1, 2*time.Second) })
	if shown := "\n    " + strings.ReplaceAll(text, "\n", "\n    ") + "\n\n"; !strings.Contains(string(page), shown) {
		t.Errorf("docs/testing.md does not have, indented:\n%s", text)
	}
}

func TestWhatCannotBeIsRefused(t *testing.T) {
	t.Parallel()
	for want, option := range map[string]waybilltest.Option{
		"WithLanes(0)":      waybilltest.WithLanes(0),
		"WithEventTTL(-1s)": waybilltest.WithEventTTL(-time.Second),
		"WithBehaviour: Behaviour.RefuseType: want a regular expression": waybilltest.WithBehaviour(waybilltest.Behaviour{RefuseType: "("}),
		`WithDedupeAttribute: dedupe attribute: "Not_One"`:               waybilltest.WithDedupeAttribute("Not_One"),
	} {
		t.Run(want, func(t *testing.T) {
			mustSay(t, mustFail(t, func(t testing.TB) { waybilltest.Start(t, option) }), "waybilltest: ", want)
		})
	}
	w := waybilltest.Start(t)
	mustSay(t, mustFail(t, func(t testing.TB) {
		w.SetBehaviour(t, waybilltest.Behaviour{Delay: -1, RefuseCode: "NO", LoseEvery: -1})
	}),
		"Behaviour.Delay: -1ns", `Behaviour.RefuseCode: "NO"`, ", VALIDATION_FAILED", "Behaviour.LoseEvery: -1")
	mustSay(t, mustFail(t, func(t testing.TB) { w.Emit(t, waybilltest.Event{ID: "1", Type: "t"}) }), "source", `"1"`)
	if text := mustFail(t, func(t testing.TB) { w.Emit(t, waybilltest.Event{Type: "t"}) }); strings.Contains(text, `t "" of`) {
		t.Errorf("the id that it made up is not told: %s", text)
	}
	mustSay(t, mustFail(t, func(t testing.TB) {
		w.Emit(t, waybilltest.Event{Source: "/a", Type: "t", Extensions: map[string]any{"f": 1.5}})
	}), "extension f", "float64")
	if n := len(w.Received(waybilltest.Filter{})); n != 0 {
		t.Errorf("%d events came of none", n)
	}
}
