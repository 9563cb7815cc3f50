package main

import (
	"os"
	"regexp"
	"testing"
)

// composeVariable is a variable that compose.yaml gives to a container.
var composeVariable = regexp.MustCompile(`(?m)^\s+(WAYBILL_[A-Z0-9_]+):`)

// A variable that no command knows would be passed over in silence.
func TestComposeSetsWhatIsKnown(t *testing.T) {
	parser, err := newParser(newRunningStack())
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, command := range parser.Model.Leaves(false) {
		for _, flag := range command.Flags {
			for _, name := range flag.Envs {
				known[name] = true
			}
		}
	}
	text, err := os.ReadFile("../../compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	found := composeVariable.FindAllStringSubmatch(string(text), -1)
	if len(found) < 10 {
		t.Fatalf("compose.yaml sets %d variables; is it read rightly?", len(found))
	}
	for _, m := range found {
		if !known[m[1]] {
			t.Errorf("compose.yaml sets %s, which no command knows", m[1])
		}
	}
}
