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
	if err := a.checks.Export(m); err != nil {
		return err
	}
	fail := func(err error) error { return fmt.Errorf("export the state of the process: %w", err) }
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
		return nil
	}, info)
	if err != nil {
		return fail(err)
	}
	return nil
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
