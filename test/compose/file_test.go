package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

func mustRead(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func mustModel(t *testing.T) model {
	t.Helper()
	m, err := readModel([]byte(mustRead(t, "compose.yaml")))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

var (
	// used is a variable in a compose file, with its default.
	used = regexp.MustCompile(`\$\{([A-Z0-9_]+)(?::?-([^}]*))?\}`)
	// defined is one of .env.
	defined = regexp.MustCompile(`^([A-Z0-9_]+)=(.*)$`)
)

// settings are the variables of .env, and those that no comment stands above.
func settings(t *testing.T) (values map[string]string, bare []string) {
	t.Helper()
	values = map[string]string{}
	explained := false
	for line := range strings.SplitSeq(mustRead(t, ".env"), "\n") {
		m := defined.FindStringSubmatch(line)
		switch {
		case strings.HasPrefix(line, "#"):
			explained = true
		case line == "":
			explained = false
		case m == nil:
			t.Errorf(".env: %q is neither a comment nor a setting", line)
		default:
			if values[m[1]] = m[2]; !explained {
				bare = append(bare, m[1])
			}
		}
	}
	return values, bare
}

func TestEverySettingIsInEnvAndUsed(t *testing.T) {
	values, bare := settings(t)
	if len(bare) > 0 {
		t.Errorf(".env: nothing is said of %v", bare)
	}
	inFile := map[string]bool{"COMPOSE_PROJECT_NAME": true} // of compose itself
	for _, m := range used.FindAllStringSubmatch(mustRead(t, "compose.yaml"), -1) {
		name, fallback := m[1], m[2]
		inFile[name] = true
		if value, ok := values[name]; !ok {
			t.Errorf("compose.yaml uses %s, which .env lacks", name)
		} else if value != fallback {
			t.Errorf("%s is %q in .env, and %q without it", name, value, fallback)
		}
	}
	for name := range values {
		if !inFile[name] {
			t.Errorf(".env has %s, which nothing uses", name)
		}
	}
}

func TestPortsAreOfThisMachineOnly(t *testing.T) {
	m := mustModel(t)
	seen := map[string]string{}
	for name, s := range m.Services {
		for _, port := range s.Ports {
			text := fmt.Sprint(port)
			if !strings.HasPrefix(text, "127.0.0.1:${") {
				t.Errorf("%s: port %q; want one on 127.0.0.1 with a name in .env", name, text)
			}
			host := text[:strings.LastIndex(text, ":")]
			if other := seen[host]; other != "" {
				t.Errorf("%s and %s have the same port %s", name, other, host)
			}
			seen[host] = name
		}
	}
	for _, name := range []string{"ingest", "forwarder", "janitor"} {
		if len(m.Services[name].Ports) > 0 {
			t.Errorf("%s has ports of the host: a second one could not start", name)
		}
	}
}

// pinned is an image with a version of its own.
var pinned = regexp.MustCompile(`^[^:]+:v?\d+(\.\d+)*(-[a-z]+)?$`)

func TestServices(t *testing.T) {
	m := mustModel(t)
	built, _, err := m.built()
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range m.Services {
		if s.Image != built && !pinned.MatchString(s.Image) {
			t.Errorf("%s: image %q; want one with a version", name, s.Image)
		}
		once := s.Restart == "no"
		if (s.Healthcheck == nil || len(s.Healthcheck.Test) == 0) != (once || name == "emitter") {
			t.Errorf("%s: up --wait wants a health check of all that go on and are asked something", name)
		}
		for other, d := range s.DependsOn {
			want := "service_healthy"
			if m.Services[other].Restart == "no" {
				want = "service_completed_successfully"
			}
			if _, ok := m.Services[other]; !ok || d.Condition != want {
				t.Errorf("%s depends on %s with %q; want %s", name, other, d.Condition, want)
			}
		}
		// One that nobody waits for passes for a failed one in up --wait.
		if once && !m.needed(name) {
			t.Errorf("%s ends, and nothing depends on it", name)
		}
		for _, mount := range s.Volumes {
			source, _, _ := strings.Cut(fmt.Sprint(mount), ":")
			if strings.HasPrefix(source, "./") {
				if _, err := os.Stat(filepath.Join(root, source)); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			} else if _, ok := m.Volumes[source]; !ok {
				t.Errorf("%s: the volume %s is not declared", name, source)
			}
		}
	}
	for _, name := range []string{"postgres", "nats", "s3"} {
		if len(m.Services[name].Volumes) == 0 {
			t.Errorf("%s stores nothing that outlives its container", name)
		}
	}
	if want := []string{"grafana", "prometheus"}; !slices.Equal(profiled(m), want) {
		t.Errorf("the profile observability has %v, want %v", profiled(m), want)
	}
}

// profiled are the services that are not started by default.
func profiled(m model) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(m.Services)) {
		if slices.Contains(m.Services[name].Profiles, "observability") {
			out = append(out, name)
		}
	}
	return out
}

func TestTracesAndMetricsHaveSomewhereToGo(t *testing.T) {
	m := mustModel(t)
	for _, name := range []string{"ingest", "forwarder", "janitor"} {
		env := m.Services[name].Environment
		if env["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] != "${TRACES_TO-http://jaeger:4317}" || env["OTEL_TRACES_SAMPLER_ARG"] != "${TRACES_RATIO:-1.0}" {
			t.Errorf("%s: %v", name, env)
		}
	}
	prometheus := mustRead(t, "deploy/compose/prometheus.yaml")
	for _, want := range []string{"names: [ingest, forwarder, janitor]", "port: 9090", "/etc/prometheus/rules/*.yaml"} {
		if !strings.Contains(prometheus, want) {
			t.Errorf("prometheus.yaml lacks %q", want)
		}
	}
	for file, target := range map[string]string{"grafana-datasources.yaml": "http://prometheus:9090", "grafana-dashboards.yaml": "/var/lib/grafana/dashboards"} {
		if !strings.Contains(mustRead(t, "deploy/compose/"+file), target) {
			t.Errorf("%s lacks %s", file, target)
		}
		if !slices.ContainsFunc(m.Services["grafana"].Volumes, func(v any) bool { return strings.HasPrefix(fmt.Sprint(v), "./deploy/compose/"+file) }) {
			t.Errorf("grafana does not get %s", file)
		}
	}
}
