package bench

import (
	"fmt"
	"slices"
	"strings"
)

// conditions is what a scenario cannot be measured without, or not with.
type conditions struct {
	// alone says why an existing system is not measured; empty: it is.
	alone string
	// needs are parts of an existing system without which nothing is measured.
	needs []givenPart
	// own is what the scenario has values of its own for, which its figures are named for; ownFlags
	// would set others.
	own      string
	ownFlags []string
	// settings, which may be nil, says what is wrong with those that only this scenario has.
	settings func(Settings) error
}

// givenPart is a part of an existing system that need not be given.
type givenPart struct {
	flag string
	is   func(Given) string
}

var (
	givenQueue    = givenPart{"--nats-url", func(g Given) string { return g.NATSURL }}
	givenEndpoint = givenPart{"--endpoint-addr", func(g Given) string { return g.EndpointAddr }}
)

// conditionsOf are those of the scenarios that have any, by name.
func conditionsOf(scenario string) conditions {
	const (
		ownPostgres = "it needs a Postgres of its own"
		ownSystems  = "it compares systems that it starts"
	)
	return map[string]conditions{
		"targets":     {alone: "they are ratios to what the same machine can do"},
		"scale":       {alone: ownSystems},
		"lanes":       {alone: ownSystems},
		"tracing":     {alone: ownSystems},
		"outage":      {needs: []givenPart{givenEndpoint}},
		"slow-sink":   {needs: []givenPart{givenEndpoint}},
		"propagation": {needs: []givenPart{givenQueue}},
		"replay":      {needs: []givenPart{givenQueue}},
		"statements":  {alone: ownPostgres, settings: checkPending},
		"store": {
			alone:    ownPostgres,
			settings: func(s Settings) error { _, err := storeParts(s); return err },
		},
		"heads": {
			alone: ownPostgres,
			own:   "a closed loop and flushes", ownFlags: []string{"--rate", "--events"},
		},
		"trace-file": {
			own: "times, keys and sizes, which are those of its file,", ownFlags: []string{"--rate", "--closed", "--bytes", "--events", "--keys", "--warm-up"},
		},
		"s3": {
			alone: "it measures an S3 server alone, which --s3-endpoint or --s3-bucket names",
			own:   "sizes and numbers of writers", ownFlags: []string{"--closed", "--bytes", "--events", "--keys", "--runs"},
		},
		"embedded": {
			needs: []givenPart{givenEndpoint},
			own:   "callers, sizes and keys", ownFlags: []string{"--rate", "--closed", "--bytes", "--keys"},
			settings: func(s Settings) error { _, err := embeddedLoads(s); return err },
		},
		"outbox": {
			alone: "it changes what emit does, to compare, and needs a system of its own",
			own:   "rates, sessions and events of a transaction", ownFlags: []string{"--rate", "--closed", "--events"},
			settings: func(s Settings) error { _, err := outboxParts(s); return err },
		},
	}[scenario]
}

// Check names the first setting with which the scenario cannot be measured.
func (s Scenario) Check(c Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	is := conditionsOf(s.Name)
	if c.Given != nil {
		if is.alone != "" {
			return fmt.Errorf("an existing system: %s: %s; leave the addresses out", s.Name, is.alone)
		}
		for _, part := range is.needs {
			if part.is(*c.Given) == "" {
				return fmt.Errorf("an existing system: %s needs %s; give it", s.Name, part.flag)
			}
		}
	}
	refused := slices.DeleteFunc(c.Settings.flags(), func(flag string) bool { return !slices.Contains(is.ownFlags, flag) })
	if len(refused) > 0 {
		return fmt.Errorf("%s: %s measures %s of its own; leave it out", strings.Join(refused, ", "), s.Name, is.own)
	}
	if is.settings != nil {
		return is.settings(c.Settings)
	}
	return nil
}

// flags are those that are set of what replaces a stage's values.
func (s Settings) flags() []string {
	var set []string
	for _, f := range []struct {
		is   bool
		flag string
	}{
		{s.Rate != nil, "--rate"},
		{s.Callers != nil, "--closed"},
		{s.Bytes != nil, "--bytes"},
		{s.Events != nil, "--events"},
		{s.Keys != nil, "--keys"},
		{s.Runs != nil, "--runs"},
		{s.WarmUp != nil, "--warm-up"},
	} {
		if f.is {
			set = append(set, f.flag)
		}
	}
	return set
}
