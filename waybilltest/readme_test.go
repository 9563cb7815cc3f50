package waybilltest_test

import (
	"os"
	"strings"
	"testing"
)

// The example of the README is the one that runs here, in a package of the reader's.
func TestReadmeHasTheExample(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	theirs := strings.Replace(string(example), "package waybilltest_test\n", "package shop\n", 1)
	var block strings.Builder
	for line := range strings.Lines(theirs) {
		if strings.TrimSpace(line) != "" {
			block.WriteString("    ")
		}
		block.WriteString(line)
	}
	if !strings.Contains(string(readme), block.String()) {
		t.Errorf("README.md does not have example_test.go, which is, indented:\n%s", &block)
	}
}
