package replay

import (
	"strings"
	"testing"
	"time"

	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/sinks"
)

func TestConfigErrors(t *testing.T) {
	point := func(text string) Point { return mustPoint(t, text) }
	for want, change := range map[string]func(*Config){
		"name: \"\"":               func(c *Config) { c.Name = "" },
		"name: \"a/b\"":            func(c *Config) { c.Name = "a/b" },
		"name: \"-a\"":             func(c *Config) { c.Name = "-a" },
		"name: \"aaaa":             func(c *Config) { c.Name = strings.Repeat("a", 65) },
		"lane: 256":                func(c *Config) { c.Lanes = []int{3, 256} },
		"source and type":          func(c *Config) { c.Type = strings.Repeat("t", 600) },
		"rate: -1":                 func(c *Config) { c.Rate = -1 },
		"retry-for: 0s":            func(c *Config) { c.RetryFor = 0 },
		"late: -1s":                func(c *Config) { c.Late = -time.Second },
		"InFlight":                 func(c *Config) { c.InFlight = 0 },
		"name: the state":          func(c *Config) { c.Queue, c.Resumable, c.From = nil, true, FromArchive },
		"two times or two":         func(c *Config) { c.Since, c.Until = point("7"), point("2h") },
		"is behind until":          func(c *Config) { c.Since, c.Until = point("7"), point("6") },
		"a time for the archive":   func(c *Config) { c.Since, c.From = point("7"), FromArchive },
		"which is in NATS":         func(c *Config) { c.Since, c.Queue = point("7"), nil },
		"is not before until":      func(c *Config) { c.Since, c.Until = point("2h"), point("3h") },
		"from: \"tape\"":           func(c *Config) { c.From = "tape" },
		"the stream is in NATS":    func(c *Config) { c.From, c.Queue = FromStream, nil },
		"no archive is configured": func(c *Config) { c.From, c.Archive = FromArchive, nil },
	} {
		c := DefaultConfig()
		c.Name, c.Queue, c.Archive = "x", new(pipeline.Queue), new(sinks.ArchiveReader)
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestPoint(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"2026-03-01T08:00:00+01:00": now.Add(-5 * time.Hour), "90m": now.Add(-90 * time.Minute), "17": {},
	} {
		if p := mustPoint(t, text); !p.at(now).Equal(want) || p.String() != text || (p.sequence == 17) != (text == "17") {
			t.Errorf("%s: %v", text, p.at(now))
		}
	}
	for _, text := range []string{"", "yesterday", "-2h", "0", "-3", "1.5"} {
		if err := new(Point).UnmarshalText([]byte(text)); err == nil || !strings.Contains(err.Error(), "how long ago") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestPrefixOfAReplay(t *testing.T) {
	if p := ArchivePrefix("a/b", "x"); p != "a/b/replays/x" {
		t.Error(p)
	}
	if p := ArchivePrefix("", "x"); p != "replays/x" {
		t.Error(p)
	}
}

// The floor of a state is below whatever is not done with, whichever lane it is of.
func TestTracker(t *testing.T) {
	tr := newTracker(position{Floor: 10, Lanes: map[int]uint64{3: 12}})
	want := func(floor uint64, lanes string) {
		t.Helper()
		p := tr.position()
		var got strings.Builder
		for lane := range 4 {
			if at, ok := p.Lanes[lane]; ok {
				got.WriteString(string(rune('0'+lane)) + ":" + time.Duration(at).String() + " ")
			}
		}
		if p.Floor != floor || got.String() != lanes {
			t.Errorf("floor %d, lanes %s; want %d, %s", p.Floor, got.String(), floor, lanes)
		}
	}
	want(10, "3:12ns ")
	tr.begin(0, 11)
	tr.passed(11)
	want(10, "3:12ns ")
	tr.begin(1, 12)
	tr.passed(13)
	tr.begin(0, 14)
	tr.passed(20)
	tr.end(1, 12)
	want(10, "1:12ns 3:12ns ")
	tr.end(0, 13)
	want(13, "0:13ns 1:12ns 3:12ns ")
	tr.end(0, 15)
	want(20, "0:15ns 1:12ns 3:12ns ")
}
