package devrun

import (
	"slices"
	"strings"
	"testing"
)

// envOfCommand is what a process of the stack has in its environment: of two with one name the
// last counts.
func envOfCommand(s *Stack) map[string]string {
	env := map[string]string{}
	for _, line := range s.command("ingest-1", nil, "ingest").Env {
		key, value, _ := strings.Cut(line, "=")
		env[key] = value
	}
	return env
}

func TestTracesAreKeptUnlessTheEnvironmentSaysOtherwise(t *testing.T) {
	for _, c := range []struct {
		keep    int
		env     []string
		kept    bool
		sampler string
		delay   string
	}{
		{0, nil, false, "", ""},
		{0, []string{"OTEL_TRACES_SAMPLER=always_on"}, false, "always_on", ""},
		{1000, nil, true, "always_on", "500"},
		{1000, []string{"OTEL_BSP_SCHEDULE_DELAY=7"}, true, "always_on", "7"},
		{1000, []string{"OTEL_TRACES_SAMPLER=traceidratio"}, true, "traceidratio", "500"},
		{1000, []string{"OTEL_TRACES_SAMPLER_ARG=0.5"}, true, "", "500"},
		{1000, []string{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf"}, true, "always_on", "500"},
		{1000, []string{"OTEL_TRACES_EXPORTER=otlp", "OTEL_TRACES_EXPORTER="}, true, "always_on", "500"}, // the last counts
		{1000, []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1"}, false, "", ""},
		{1000, []string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://127.0.0.1:1"}, false, "", ""},
		{1000, []string{"OTEL_TRACES_EXPORTER=none"}, false, "", ""},
		{1000, []string{"OTEL_TRACES_EXPORTER=otlp"}, false, "", ""},
		{1000, []string{"OTEL_SDK_DISABLED=true"}, false, "", ""},
	} {
		config := testConfig(t)
		config.KeepSpans, config.Env = c.keep, c.env
		s, err := New(config)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.keepTraces(); err != nil {
			t.Fatal(err)
		}
		env := envOfCommand(s)
		sent := strings.HasPrefix(env["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"], "http://") && env["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == "grpc"
		named := slices.ContainsFunc(c.env, func(line string) bool { return strings.HasPrefix(line, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=") })
		if kept := s.TraceQueryURL != ""; kept != c.kept || !named && sent != c.kept {
			t.Errorf("%v: kept at %q, and sent to %q", c.env, s.TraceQueryURL, env["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
		}
		if env["OTEL_TRACES_SAMPLER"] != c.sampler || env["OTEL_BSP_SCHEDULE_DELAY"] != c.delay {
			t.Errorf("%v: sampler %q, delay %q; want %q, %q", c.env, env["OTEL_TRACES_SAMPLER"], env["OTEL_BSP_SCHEDULE_DELAY"], c.sampler, c.delay)
		}
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	}
}
