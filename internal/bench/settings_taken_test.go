package bench

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a scenario does not take is refused before anything is started or written.
func TestScenariosRefuseWhatTheyHaveOfTheirOwn(t *testing.T) {
	one, rate, nowhere := 1, 1.0, "nowhere"
	for want, c := range map[string]struct {
		scenario string
		settings Settings
	}{
		"--rate: embedded measures callers, sizes and keys":       {"embedded", Settings{Rate: &rate}},
		"--closed, --bytes, --keys: embedded measures":            {"embedded", Settings{Callers: &one, Bytes: &one, Keys: &one}},
		`--part: "nowhere" is in no part's name`:                  {"embedded", Settings{Part: &nowhere}},
		"--rate, --events: outbox measures rates, sessions":       {"outbox", Settings{Rate: &rate, Events: &one}},
		"--closed: outbox measures rates, sessions and events of": {"outbox", Settings{Callers: &one}},
	} {
		scenario, err := Find(c.scenario)
		if err != nil {
			t.Fatal(err)
		}
		config := DefaultConfig()
		config.Dir, config.Executable, config.Say, config.Settings = filepath.Join(t.TempDir(), "report"), "none", func(string) {}, c.settings
		if _, err := Run(t.Context(), config, scenario); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		if _, err := os.Stat(config.Dir); err == nil {
			t.Errorf("%s: there is a report", want)
		}
	}
}
