package bench

import (
	"context"
	"fmt"
)

// Target is something that Waybill is to reach.
type Target struct {
	// Name begins with the number of the target.
	Name string
	// Most says that Limit is the highest value, and not the lowest.
	Most    bool
	Limit   float64
	Unit    string // empty: a ratio
	Kind    Kind
	measure func(ctx context.Context, m *measured) (float64, error)
}

// TargetResult is what a target's figure is.
type TargetResult struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Most  bool    `json:"most"`
	Limit float64 `json:"limit"`
	Unit  string  `json:"unit"`
	Kind  Kind    `json:"kind"`
	OK    bool    `json:"ok"`
	Error string  `json:"error,omitempty"`
}

// judge compares a value with the target.
func (t Target) judge(value float64, err error) TargetResult {
	r := TargetResult{Name: t.Name, Value: value, Most: t.Most, Limit: t.Limit, Unit: t.Unit, Kind: t.Kind}
	if err != nil {
		r.Error = err.Error()
		return r
	}
	r.OK = value >= t.Limit
	if t.Most {
		r.OK = value <= t.Limit
	}
	return r
}

// String is the line of a target: name, value, want, limit, ok or short.
func (r TargetResult) String() string {
	sign, word := ">=", "short"
	if r.Most {
		sign = "<="
	}
	if r.OK {
		word = "ok"
	}
	if r.Error != "" {
		word += " (" + r.Error + ")"
	}
	return fmt.Sprintf("%s %s%s want %s%s%s %s", r.Name, formatValue(r.Value), r.Unit, sign, formatValue(r.Limit), r.Unit, word)
}

// targetGroup is targets that one system, or several of their own, are measured for.
type targetGroup struct {
	name string
	// own says that each target starts its systems by itself.
	own     bool
	targets []Target
}

// runTargets measures all targets, each system in turn.
func runTargets(ctx context.Context, b *Bench) error {
	for _, group := range targetGroups() {
		m := &measured{bench: b, stages: map[string]ranStage{}, values: map[string]float64{}}
		var err error
		if group.own {
			err = m.all(ctx, group.targets)
		} else {
			err = b.with(ctx, group.name, nil, func(s *System) error {
				m.system = s
				return m.all(ctx, group.targets)
			})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// all measures targets. One that cannot be measured is short, and the others go on.
func (m *measured) all(ctx context.Context, targets []Target) error {
	for _, target := range targets {
		value, err := target.measure(ctx, m)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		result := target.judge(value, err)
		m.bench.report.Targets = append(m.bench.report.Targets, result)
		m.bench.config.Say(result.String())
	}
	return nil
}

// measured is what was measured for the targets of a group so far: several of them go by the
// same stage.
type measured struct {
	bench  *Bench
	system *System // nil: the targets start their own
	stages map[string]ranStage
	values map[string]float64
}

// ranStage is a stage, or why there is none.
type ranStage struct {
	stage *Stage
	err   error
}

// stage runs a load, or returns what an earlier target made it give.
func (m *measured) stage(ctx context.Context, load Load) (*Stage, error) {
	if ran, known := m.stages[load.Name]; known {
		return ran.stage, ran.err
	}
	st, err := m.system.Run(ctx, load)
	m.stages[load.Name] = ranStage{st, err}
	return st, err
}

// open is stage, with an error beside it where the generator could not keep up.
func (m *measured) open(ctx context.Context, load Load) (*Stage, error) {
	st, err := m.stage(ctx, load)
	if err == nil && st.Saturated != "" {
		err = fmt.Errorf("stage %s: %s", load.Name, st.Saturated)
	}
	return st, err
}

// value measures what has a name, or returns what it was.
func (m *measured) value(kind Kind, name, unit string, measure func() (float64, error)) (float64, error) {
	if v, known := m.values[name]; known {
		return v, nil
	}
	v, err := measure()
	if err != nil {
		return 0, err
	}
	m.values[name] = v
	m.bench.figure(kind, name, v, unit)
	return v, nil
}
