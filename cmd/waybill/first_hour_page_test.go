package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

// scene is a block of commands on a page, and the block of what they show, if one follows.
type scene struct {
	commands []string
	shown    []string // nil: the page does not say
}

// act is a numbered part of a walk on a page.
type act struct {
	title  string
	text   string // all of it
	scenes []scene
}

// readWalk returns the parts, with headings of the third order, of the part of a page that has the
// heading. Blocks fenced as sh are typed, those fenced as text are shown; all others are left out.
func readWalk(page, heading string) (acts []act, err error) {
	_, rest, found := strings.Cut(page, "\n## "+heading+"\n")
	if !found {
		return nil, fmt.Errorf("there is no heading %q", heading)
	}
	fence, isFenced := "", false
	for line := range strings.SplitSeq(rest, "\n") {
		marked := strings.HasPrefix(line, "```")
		switch {
		case !isFenced && strings.HasPrefix(line, "## "):
			return acts, nil
		case !isFenced && strings.HasPrefix(line, "### "):
			acts = append(acts, act{title: strings.TrimPrefix(line, "### ")})
			continue
		case len(acts) == 0:
			continue
		}
		a := &acts[len(acts)-1]
		a.text += line + "\n"
		switch {
		case marked && isFenced:
			isFenced = false
		case marked:
			fence, isFenced = strings.TrimPrefix(line, "```"), true
			err = a.begin(fence)
		case isFenced:
			a.add(fence, line)
		}
		if err != nil {
			return nil, err
		}
	}
	return acts, nil
}

// begin begins a block.
func (a *act) begin(fence string) error {
	switch fence {
	case "sh":
		a.scenes = append(a.scenes, scene{})
	case "text":
		if len(a.scenes) == 0 || a.scenes[len(a.scenes)-1].shown != nil {
			return fmt.Errorf("%s: a block of text has no commands of its own before it", a.title)
		}
		a.scenes[len(a.scenes)-1].shown = []string{}
	}
	return nil
}

func (a *act) add(fence, line string) {
	if len(a.scenes) == 0 {
		return
	}
	s := &a.scenes[len(a.scenes)-1]
	switch fence {
	case "sh":
		s.commands = append(s.commands, line)
	case "text":
		s.shown = append(s.shown, line)
	}
}

// pattern is what the output must match: line by line, with any blanks for blanks. … is anything in a
// line, and by itself any number of lines.
func (s scene) pattern() *regexp.Regexp {
	var p strings.Builder
	p.WriteString(`\A`)
	for _, line := range s.shown {
		if strings.TrimSpace(line) == "…" {
			p.WriteString(`(?:.*\n)*?`)
			continue
		}
		words := strings.Fields(line)
		for i, word := range words {
			words[i] = strings.ReplaceAll(regexp.QuoteMeta(word), "…", ".*")
		}
		p.WriteString(`[ \t]*` + strings.Join(words, `[ \t]+`) + `[ \t]*\n`)
	}
	return regexp.MustCompile(p.String() + `\z`)
}

// mustReadPage reads a page of the repository.
func mustReadPage(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("../../" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

const samplePage = "# Page\n\n## Other\n\n```sh\nnot this\n```\n\n## Walk\n\nBegin.\n\n### 1. One\n\nDo\n\n```sh\nfirst\n# and\nsecond\n```\n\nand see\n\n" +
	"```text\na  b\n…\nlast … line\n```\n\n```yaml\nleft: out\n```\n\n```sh\nthird\n```\n\n### 2. Two\n\nNothing.\n\n## Next\n\n```sh\nnot this\n```\n"

func TestReadWalk(t *testing.T) {
	acts, err := readWalk(samplePage, "Walk")
	if err != nil {
		t.Fatal(err)
	}
	const want = `[{1. One [{[first # and second] [a  b … last … line]} {[third] []}]} {2. Two []}]`
	var got []string
	for _, a := range acts {
		got = append(got, fmt.Sprintf("{%s %v}", a.title, a.scenes))
	}
	if text := fmt.Sprint(got); text != want {
		t.Errorf("got  %s\nwant %s", text, want)
	}
	if !strings.Contains(acts[0].text, "and see") || strings.Contains(acts[0].text, "Nothing") || acts[0].scenes[1].shown != nil {
		t.Errorf("%+v", acts)
	}
	if _, err := readWalk(samplePage, "Nowhere"); err == nil {
		t.Error("a heading that is not there is found")
	}
	if _, err := readWalk("\n## Walk\n### 1.\n```text\nx\n```\n", "Walk"); err == nil {
		t.Error("nothing is typed before something is shown")
	}
	pattern := acts[0].scenes[0].pattern()
	for output, matches := range map[string]bool{
		"a b\nlast line\n":                      false,
		"a b\nlast  line\n":                     true,
		"  a \t b  \nx\n\ny\nlast of 3 line \n": true,
		"x\na b\nlast of 3 line\n":              false,
		"a b\nlast of 3 line\nx\n":              false,
		"a b\nlast of\n3 line\n":                false,
	} {
		if pattern.MatchString(output) != matches {
			t.Errorf("%q: matches is %v", output, !matches)
		}
	}
}
