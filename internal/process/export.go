package process

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/waybillhq/waybill/internal/cli"
)

// export makes the instruments that all processes have: what is wrong, how full the buffers are,
// and the configuration in force.
func (a *admin) export(config any) error {
	settings, err := settingsOf(config)
	if err != nil {
		return err
	}
	m := a.meter("waybill/process")
	fail := func(err error) error { return fmt.Errorf("export the state of the process: %w", err) }
	problem, err := m.Int64ObservableGauge("waybill.health.problem", metric.WithUnit("{problem}"),
		metric.WithDescription("1 while a check of /readyz fails, else 0; by check, and by severity: unready or degraded"))
	if err != nil {
		return fail(err)
	}
	fill, err := m.Float64ObservableGauge("waybill.buffer.utilization", metric.WithUnit("1"),
		metric.WithDescription("The part of a bounded buffer that is full, by buffer"))
	if err != nil {
		return fail(err)
	}
	info, err := m.Int64ObservableGauge("waybill.config.info", metric.WithUnit("{setting}"),
		metric.WithDescription("1 for each setting, which is in the attributes as the process uses it; secrets are left out"))
	if err != nil {
		return fail(err)
	}
	var inForce []metric.MeasurementOption
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		inForce = append(inForce, metric.WithAttributeSet(attribute.NewSet(
			attribute.String("setting", name), attribute.String("value", settings[name]))))
	}
	_, err = m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		for _, s := range inForce {
			o.ObserveInt64(info, 1, s)
		}
		a.observe(o, problem, fill)
		return nil
	}, problem, fill, info)
	if err != nil {
		return fail(err)
	}
	return nil
}

// observe runs the checks and looks at the buffers.
func (a *admin) observe(o metric.Observer, problem metric.Int64Observable, fill metric.Float64Observable) {
	r := a.readiness()
	failing := map[string]bool{}
	for _, p := range slices.Concat(r.Problems, r.Degraded) {
		failing[p.Check] = true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.checks {
		severity, value := "unready", int64(0)
		if c.degrading {
			severity = "degraded"
		}
		if failing[c.name] {
			value = 1
		}
		o.ObserveInt64(problem, value, metric.WithAttributes(attribute.String("check", c.name), attribute.String("severity", severity)))
	}
	for _, buffers := range a.buffers {
		for _, b := range buffers() {
			if b.Limit > 0 {
				o.ObserveFloat64(fill, b.Fill(), metric.WithAttributes(attribute.String("buffer", b.Name)))
			}
		}
	}
}

// settingsOf returns the settings of a process but for secrets, by the names of their flags.
func settingsOf(config any) (map[string]string, error) {
	parser, err := cli.NewParser("settings", "", config, Defaults())
	if err != nil {
		return nil, fmt.Errorf("read the settings: %w", err)
	}
	out := map[string]string{}
	for _, flag := range parser.Model.Flags {
		if flag.Name != "help" && !flag.Tag.Has("secret") {
			out[flag.Name] = fmt.Sprint(flag.Target.Interface())
		}
	}
	return out, nil
}
