package bench

import (
	"fmt"
	"strings"
)

// takes names the settings that the scenario has values of its own for, which its figures are named for.
func (s Scenario) takes(c Settings) error {
	var refused []string
	refuse := func(given bool, flag string) {
		if given {
			refused = append(refused, flag)
		}
	}
	own := ""
	switch s.Name {
	case "embedded":
		own = "callers, sizes and keys"
		refuse(c.Rate != nil, "--rate")
		refuse(c.Callers != nil, "--closed")
		refuse(c.Bytes != nil, "--bytes")
		refuse(c.Keys != nil, "--keys")
	case "outbox":
		own = "rates, sessions and events of a transaction"
		refuse(c.Rate != nil, "--rate")
		refuse(c.Callers != nil, "--closed")
		refuse(c.Events != nil, "--events")
	}
	if len(refused) > 0 {
		return fmt.Errorf("%s: %s measures %s of its own; leave it out", strings.Join(refused, ", "), s.Name, own)
	}
	var err error
	switch s.Name {
	case "embedded":
		_, err = embeddedLoads(c)
	case "outbox":
		_, err = outboxParts(c)
	}
	return err
}
