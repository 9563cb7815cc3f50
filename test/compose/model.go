package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// model is what is read of a compose file.
type model struct {
	Services map[string]service `yaml:"services"`
	Volumes  map[string]any     `yaml:"volumes"`
}

type service struct {
	Image       string            `yaml:"image"`
	Build       *buildModel       `yaml:"build"`
	Profiles    []string          `yaml:"profiles"`
	Restart     string            `yaml:"restart"`
	Environment map[string]string `yaml:"environment"`
	DependsOn   map[string]struct {
		Condition string `yaml:"condition"`
	} `yaml:"depends_on"`
	Healthcheck *struct {
		Test []string `yaml:"test"`
	} `yaml:"healthcheck"`
	Ports   []any `yaml:"ports"`
	Volumes []any `yaml:"volumes"`
}

type buildModel struct {
	Args map[string]string `yaml:"args"`
}

// readModel reads what `compose config` prints, or the file itself.
func readModel(text []byte) (model, error) {
	var m model
	if err := yaml.Unmarshal(text, &m); err != nil {
		return m, fmt.Errorf("read the compose file: %w", err)
	}
	if len(m.Services) == 0 {
		return m, fmt.Errorf("read the compose file: it has no services")
	}
	return m, nil
}

// built is the image that the project builds, and what it is built with and on.
func (m model) built() (image string, from []string, err error) {
	for _, s := range m.Services {
		if s.Build != nil {
			return s.Image, []string{s.Build.Args["GO_IMAGE"], s.Build.Args["BASE_IMAGE"]}, nil
		}
	}
	return "", nil, fmt.Errorf("no service of the compose file builds an image")
}

// needed reports whether another service waits for it.
func (m model) needed(name string) bool {
	for _, s := range m.Services {
		if _, waits := s.DependsOn[name]; waits {
			return true
		}
	}
	return false
}

// names are those of the services without a profile, sorted.
func (m model) names() []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(m.Services)) {
		if len(m.Services[name].Profiles) == 0 {
			out = append(out, name)
		}
	}
	return out
}

// foreign are the images that the project does not build, by service, for services without a profile.
func (m model) foreign(built string) map[string]string {
	out := map[string]string{}
	for _, name := range m.names() {
		if image := m.Services[name].Image; image != built {
			out[name] = image
		}
	}
	return out
}

// container is one of a project, as the engine sees it.
type container struct {
	ID, Service string
	Status      string // running, exited, …
	Health      string // healthy, …; empty: it has no check
	Exit        int
	OnFailure   string // whether it is started again when it ends
}

// settled reports whether a container has come to where it should be: it runs and is healthy, or
// has done its work and ended.
func (c container) settled() bool {
	if c.OnFailure == "no" {
		return c.Status == "exited" && c.Exit == 0
	}
	return c.Status == "running" && (c.Health == "" || c.Health == "healthy")
}

// failed reports that nobody need wait any longer.
func (c container) failed() bool { return c.OnFailure == "no" && c.Status == "exited" && c.Exit != 0 }

func (c container) String() string {
	state := c.Status
	if c.Health != "" {
		state += ", " + c.Health
	}
	return fmt.Sprintf("%s (%.12s: %s, exit %d)", c.Service, c.ID, state, c.Exit)
}

// inspected is what is read of `docker inspect`.
type inspected struct {
	ID    string `json:"Id"`
	State struct {
		Status   string
		ExitCode int
		Health   *struct{ Status string }
	}
	Config     struct{ Labels map[string]string }
	HostConfig struct{ RestartPolicy struct{ Name string } }
}

// containersOf are the inspected ones by service and id.
func containersOf(all []inspected) []container {
	out := make([]container, 0, len(all))
	for _, i := range all {
		c := container{
			ID: i.ID, Service: i.Config.Labels["com.docker.compose.service"], Status: i.State.Status, Exit: i.State.ExitCode,
			OnFailure: cmp.Or(i.HostConfig.RestartPolicy.Name, "no"),
		}
		if i.State.Health != nil {
			c.Health = i.State.Health.Status
		}
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b container) int {
		return cmp.Or(strings.Compare(a.Service, b.Service), strings.Compare(a.ID, b.ID))
	})
	return out
}

// missing says what of the wanted numbers is not there or not settled; empty: nothing.
func missing(want map[string]int, have []container) string {
	settled := map[string]int{}
	var problems []string
	for _, c := range have {
		if c.settled() {
			settled[c.Service]++
		} else if want[c.Service] > 0 {
			problems = append(problems, c.String())
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if settled[name] != want[name] {
			problems = append(problems, fmt.Sprintf("%s: %d of %d", name, settled[name], want[name]))
		}
	}
	return strings.Join(problems, "; ")
}
