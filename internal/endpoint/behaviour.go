package endpoint

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/waybillhq/waybill/schemas/chipingress"
)

// maxDelay bounds Behaviour.DelayMS: longer than any caller waits.
const maxDelay = 10 * time.Minute

// Behaviour makes the endpoint misbehave. DefaultBehaviour does not.
type Behaviour struct {
	// DelayMS is how long each call, and each message of a stream, waits first, in
	// milliseconds.
	DelayMS int `json:"delay_ms"`
	// Down answers everything with UNAVAILABLE.
	Down bool `json:"down"`
	// Overload answers everything but Ping with RESOURCE_EXHAUSTED.
	Overload bool `json:"overload"`
	// RefuseType is a regular expression: events whose type it matches get an error
	// with RefuseCode, the short name of a PublishErrorCode. Empty: none.
	RefuseType string `json:"refuse_type"`
	RefuseCode string `json:"refuse_code"`
	// PoisonType is a regular expression: a request with an event whose type it matches
	// is answered with INVALID_ARGUMENT and taken in no part. Empty: none.
	PoisonType string `json:"poison_type"`
	// FailEvery is n: every nth call takes its events and is then answered with
	// UNAVAILABLE, as if the response were lost. 0: none.
	FailEvery int `json:"fail_every"`
	// MaxMessageBytes answers larger requests as a gRPC server with that limit would.
	// It can lower the server's own limit, which is fixed at start. 0: only that one.
	MaxMessageBytes int `json:"max_message_bytes"`
}

// DefaultBehaviour is that of a healthy endpoint.
func DefaultBehaviour() Behaviour {
	return Behaviour{RefuseCode: "VALIDATION_FAILED"}
}

const errorCodePrefix = "PUBLISH_ERROR_CODE_"

// rules are a Behaviour made ready for use. They do not change.
type rules struct {
	Behaviour
	delay          time.Duration
	refuse, poison *regexp.Regexp // nil: nothing matches
	refuseCode     chipingress.PublishErrorCode
}

// compile checks b; the error names the field and the remedy.
func (b Behaviour) compile() (*rules, error) {
	r := &rules{Behaviour: b, delay: time.Duration(b.DelayMS) * time.Millisecond}
	if b.DelayMS < 0 || int64(b.DelayMS) > maxDelay.Milliseconds() {
		return nil, fmt.Errorf("delay_ms is %d; use 0 to %d", b.DelayMS, maxDelay.Milliseconds())
	}
	if b.FailEvery < 0 {
		return nil, fmt.Errorf("fail_every is %d; use 0 for never or a positive number", b.FailEvery)
	}
	if b.MaxMessageBytes < 0 {
		return nil, fmt.Errorf("max_message_bytes is %d; use 0 for no lower limit or a positive number", b.MaxMessageBytes)
	}
	code, ok := chipingress.PublishErrorCode_value[errorCodePrefix+b.RefuseCode]
	if !ok {
		return nil, fmt.Errorf("refuse_code is %q; use one of %s", b.RefuseCode, strings.Join(errorCodeNames(), ", "))
	}
	r.refuseCode = chipingress.PublishErrorCode(code)
	var err error
	if r.refuse, err = compilePattern("refuse_type", b.RefuseType); err != nil {
		return nil, err
	}
	r.poison, err = compilePattern("poison_type", b.PoisonType)
	return r, err
}

func compilePattern(field, pattern string) (*regexp.Regexp, error) {
	if pattern == "" {
		return nil, nil
	}
	compiled, err := regexp.Compile(pattern)
	if err != nil {
		return nil, fmt.Errorf("%s is not a regular expression; see pkg.go.dev/regexp/syntax: %w", field, err)
	}
	return compiled, nil
}

func errorCodeNames() []string {
	var names []string
	for name := range chipingress.PublishErrorCode_value {
		names = append(names, strings.TrimPrefix(name, errorCodePrefix))
	}
	slices.Sort(names)
	return names
}

func (r *rules) refuses(typ string) bool { return r.refuse != nil && r.refuse.MatchString(typ) }

func (r *rules) poisons(typ string) bool { return r.poison != nil && r.poison.MatchString(typ) }
