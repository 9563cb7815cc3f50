package main

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/waybillhq/waybill/internal/devrun"
)

// clockOff is by how much the clocks of the conditions are off.
const clockOff = 5 * time.Minute

// clockConditions are clocks of Waybill's own processes, or Postgres's, that are off, from
// their start to their end.
func clockConditions() []*condition {
	var out []*condition
	for _, of := range [][]string{ingests, forwarders, janitors} {
		name := of[0]
		for _, way := range []struct {
			name   string
			offset time.Duration
		}{{"ahead", clockOff}, {"behind", -clockOff}} {
			out = append(out, clockCondition(
				fmt.Sprintf("clock-%s-%s", kindOf(name), way.name), fmt.Sprintf("the clock of %s is 5 minutes %s", name, way.name),
				func(uint64) map[string]time.Duration { return map[string]time.Duration{name: way.offset} }))
		}
	}
	out = append(out, postgresClock("ahead", clockOff), postgresClock("behind", -clockOff))
	return append(out, clockCondition("clocks-mixed", "each clock is 5 minutes ahead, 5 minutes behind or right, by the seed", mixedClocks))
}

// postgresClock is a clock of Postgres that is off from its start to its end.
func postgresClock(way string, offset time.Duration) *condition {
	return &condition{
		name: "clock-postgres-" + way, about: "Postgres's clock is 5 minutes " + way, parts: []string{"postgres clock"},
		setup:    fakePostgresClock(offset),
		standing: func(s *system) fault { return &wrongPostgresClock{s, offset} },
	}
}

func clockCondition(name, about string, offsets func(seed uint64) map[string]time.Duration) *condition {
	return &condition{
		name: name, about: about,
		setup: func(c *devrun.Config, s *system) error {
			of := offsets(s.seed)
			addEnv(c, func(name string) []string {
				if offset, off := of[name]; off {
					return []string{fmt.Sprintf("%s=%d", offsetEnv, int(offset.Seconds()))}
				}
				return nil
			})
			return nil
		},
		standing: func(s *system) fault { return &wrongClocks{s, offsets(s.seed)} },
	}
}

// mixedClocks sets the clocks of all processes, and of the nats-server.
func mixedClocks(seed uint64) map[string]time.Duration {
	r := rand.New(rand.NewPCG(seed, 0x636c6f636b73))
	offsets := map[string]time.Duration{}
	for _, name := range append([]string{"nats-server"}, processes...) {
		offsets[name] = clockOff * time.Duration(r.IntN(3)-1)
	}
	return offsets
}
