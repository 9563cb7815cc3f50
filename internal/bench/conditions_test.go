package bench

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a scenario cannot be measured with, or without, is refused before anything is started or written.
func TestScenariosRefuseWhatCannotBeMeasured(t *testing.T) {
	one, rate, nowhere := 1, 1.0, "nowhere"
	given := &Given{HTTPURL: "http://127.0.0.1:1", GRPCAddr: "127.0.0.1:1"}
	for want, c := range map[string]struct {
		scenario string
		given    *Given
		settings Settings
	}{
		"--rate: embedded measures callers, sizes and keys":       {"embedded", nil, Settings{Rate: &rate}},
		"--closed, --bytes, --keys: embedded measures":            {"embedded", nil, Settings{Callers: &one, Bytes: &one, Keys: &one}},
		`--part: "nowhere" is in no part's name`:                  {"embedded", nil, Settings{Part: &nowhere}},
		"--rate, --events: outbox measures rates, sessions":       {"outbox", nil, Settings{Rate: &rate, Events: &one}},
		"--closed: outbox measures rates, sessions and events of": {"outbox", nil, Settings{Callers: &one}},
		"--rate, --events: heads measures a closed loop":          {"heads", nil, Settings{Rate: &rate, Events: &one}},
		"--closed, --bytes, --events, --keys, --runs: s3 ":        {"s3", nil, Settings{Callers: &one, Bytes: &one, Events: &one, Keys: &one, Runs: &one}},
		"--pending: 1; want at least":                             {"statements", nil, Settings{Pending: &one}},
		"an existing system: targets: they are ratios":            {"targets", given, Settings{}},
		"an existing system: scale: it compares systems":          {"scale", given, Settings{}},
		"an existing system: store: it needs a Postgres":          {"store", given, Settings{}},
		"an existing system: s3: it measures an S3 server":        {"s3", given, Settings{}},
		"an existing system: outbox: it changes":                  {"outbox", given, Settings{}},
		"an existing system: outage needs --endpoint-addr":        {"outage", given, Settings{}},
		"an existing system: replay needs --nats-url":             {"replay", given, Settings{}},
		"an existing system: give both --http-addr and":           {"baseline", &Given{HTTPURL: "http://127.0.0.1:1"}, Settings{}},
	} {
		scenario, err := Find(c.scenario)
		if err != nil {
			t.Fatal(err)
		}
		config := DefaultConfig()
		config.Dir, config.Executable, config.Say = filepath.Join(t.TempDir(), "report"), "none", func(string) {}
		config.Given, config.Settings = c.given, c.settings
		if _, err := Run(t.Context(), config, scenario); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		if _, err := os.Stat(config.Dir); err == nil {
			t.Errorf("%s: there is a report", want)
		}
	}
}
