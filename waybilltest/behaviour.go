package waybilltest

import (
	"testing"
	"time"

	"github.com/waybillhq/waybill/internal/endpoint"
)

// Behaviour makes the endpoint misbehave. The zero value is a healthy one.
type Behaviour struct {
	// Down answers every call with UNAVAILABLE.
	Down bool
	// Delay is how long each call waits first, in whole milliseconds; ten minutes at most.
	Delay time.Duration
	// Overloaded answers every call with RESOURCE_EXHAUSTED.
	Overloaded bool
	// RefuseType is a regular expression: events whose type it matches are refused for good, and become dead letters
	// with RefuseCode, such as SCHEMA_MISSING. Empty: none, and VALIDATION_FAILED.
	RefuseType, RefuseCode string
	// LoseEvery is n: every nth call takes its events, and its answer is lost, so that they come again. 0: none.
	LoseEvery int
}

// config is what the endpoint wants.
func (b Behaviour) config() endpoint.Behaviour {
	c := endpoint.DefaultBehaviour()
	c.Down, c.DelayMS, c.Overload, c.RefuseType, c.FailEvery = b.Down, int(b.Delay.Milliseconds()), b.Overloaded, b.RefuseType, b.LoseEvery
	if b.RefuseCode != "" {
		c.RefuseCode = b.RefuseCode
	}
	return c
}

// newBehaviour is the inverse of config.
func newBehaviour(c endpoint.Behaviour) Behaviour {
	return Behaviour{
		Down: c.Down, Delay: time.Duration(c.DelayMS) * time.Millisecond, Overloaded: c.Overload,
		RefuseType: c.RefuseType, RefuseCode: c.RefuseCode, LoseEvery: c.FailEvery,
	}
}

// SetBehaviour applies to the calls that the endpoint gets from now on. The test fails if the behaviour makes no sense.
func (w *Waybill) SetBehaviour(t testing.TB, b Behaviour) {
	t.Helper()
	if err := w.endpoint.SetBehaviour(b.config()); err != nil {
		t.Fatalf("waybilltest: %v", err)
	}
}
