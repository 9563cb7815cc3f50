package waybilltest

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/waybillhq/waybill/internal/endpoint"
	"github.com/waybillhq/waybill/schemas/chipingress"
)

// maxDelay bounds Behaviour.Delay, as the endpoint does.
const maxDelay = 10 * time.Minute

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

// codePrefix begins the names of ChipIngress's codes, and is left out in RefuseCode.
const codePrefix = "PUBLISH_ERROR_CODE_"

// validate names the fields that cannot be.
func (b Behaviour) validate() error {
	var errs []error
	if b.Delay < 0 || b.Delay > maxDelay {
		errs = append(errs, fmt.Errorf("Behaviour.Delay: %v; want 0 to %v", b.Delay, maxDelay))
	}
	if _, err := regexp.Compile(b.RefuseType); err != nil {
		errs = append(errs, fmt.Errorf("Behaviour.RefuseType: want a regular expression: %w", err))
	}
	if _, known := chipingress.PublishErrorCode_value[codePrefix+b.RefuseCode]; !known && b.RefuseCode != "" {
		codes := slices.Sorted(maps.Keys(chipingress.PublishErrorCode_value))
		errs = append(errs, fmt.Errorf("Behaviour.RefuseCode: %q; want one of %s", b.RefuseCode, strings.ReplaceAll(strings.Join(codes, ", "), codePrefix, "")))
	}
	if b.LoseEvery < 0 {
		errs = append(errs, fmt.Errorf("Behaviour.LoseEvery: %d; want 0 for none, or more", b.LoseEvery))
	}
	return errors.Join(errs...)
}

// String names the fields that are set, and make a difference.
func (b Behaviour) String() string {
	var parts []string
	add := func(set bool, name string, value any) {
		if set {
			parts = append(parts, fmt.Sprintf("%s: %v", name, value))
		}
	}
	add(b.Down, "Down", true)
	add(b.Delay != 0, "Delay", b.Delay)
	add(b.Overloaded, "Overloaded", true)
	add(b.RefuseType != "", "RefuseType", fmt.Sprintf("%q", b.RefuseType))
	add(b.RefuseType != "" && b.RefuseCode != "", "RefuseCode", fmt.Sprintf("%q", b.RefuseCode))
	add(b.LoseEvery != 0, "LoseEvery", b.LoseEvery)
	return strings.Join(parts, ", ")
}

// SetBehaviour applies to the calls that the endpoint gets from now on. The test fails if the behaviour makes no sense.
func (w *Waybill) SetBehaviour(t testing.TB, b Behaviour) {
	t.Helper()
	if err := b.validate(); err != nil {
		t.Fatalf("waybilltest: %v", err)
	}
	if err := w.endpoint.SetBehaviour(b.config()); err != nil {
		t.Fatalf("waybilltest: %v", err)
	}
}
