package main

import (
	"os"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

const referenceFile = "../../docs/cli.md"

func TestReferenceIsUpToDate(t *testing.T) {
	r := command(t, nil, "reference")
	if r.failure != nil {
		t.Fatal(r.failure)
	}
	have, err := os.ReadFile(referenceFile)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != r.out {
		t.Errorf("%s is not what the commands say: run make generate", referenceFile)
	}
}

// Every command that is not hidden stands in the reference with each of its flags, and says how its
// result is printed, or is one of those that have none.
func TestReferenceIsWhole(t *testing.T) {
	parser, err := newParser(newRunningStack())
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(referenceFile)
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	for _, section := range strings.Split(string(data), "\n#") {
		title, body, _ := strings.Cut(section, "\n")
		sections[strings.TrimLeft(title, "# ")] = body
	}
	// What they print is no result: servers, what another program reads, and files.
	without := map[string]bool{
		"dev": true, "ingest": true, "forwarder": true, "janitor": true, "endpoint": true, "healthcheck": true,
		"completion": true, "bench": true, "archive cat": true,
	}
	for _, leaf := range parser.Model.Leaves(true) {
		body, ok := sections[leaf.FullPath()]
		if !ok {
			t.Errorf("%s is not in it", leaf.FullPath())
		}
		forms := false
		for _, flag := range leaf.Flags {
			forms = forms || flag.Name == "output"
			if !strings.Contains(body, "--"+flag.Name+"`") && !strings.Contains(body, "]"+flag.Name+"`") {
				t.Errorf("%s: --%s is not in it", leaf.FullPath(), flag.Name)
			}
		}
		if name := nameOf(leaf); forms == without[name] {
			t.Errorf("%s: has -o: %v", leaf.FullPath(), forms)
		}
	}
}

// nameOf is a command's name as it is typed after waybill.
func nameOf(node *kong.Node) string { return strings.TrimPrefix(node.FullPath(), "waybill ") }
