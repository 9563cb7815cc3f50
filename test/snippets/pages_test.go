// Package snippets runs the Go and the SQL of the pages that a Go programmer begins with, as it stands there.
//
// Go has its source here, between lines with snippet:begin, which names the pages, and snippet:end; TestPagesHaveWhatRuns
// fails where a page has it otherwise, or has Go that is not here. SQL is read from the pages.
package snippets

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// pages are those whose Go and SQL is run.
var pages = []string{"README.md", "docs/embedding.md", "docs/outbox.md", "docs/testing.md", "pipeline/doc.go"}

// mustReadPage reads a page of the repository.
func mustReadPage(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../..", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// fenced are the blocks of a page in a language.
func fenced(page, language string) (blocks []string) {
	for _, rest := range strings.Split(page, "\n```"+language+"\n")[1:] {
		block, _, _ := strings.Cut(rest, "\n```")
		blocks = append(blocks, block+"\n")
	}
	return blocks
}

// mustReadSnippets returns what is marked in the files of this package, without its indentation, by page.
func mustReadSnippets(t *testing.T) map[string][]string {
	t.Helper()
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]string{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var on []string // the pages of the snippet that has begun
		var indent string
		var snippet strings.Builder
		for line := range strings.Lines(string(text)) {
			marked := strings.TrimLeft(line, "\t")
			switch {
			case strings.HasPrefix(marked, "//snippet:begin "):
				on, indent = strings.Fields(marked)[1:], line[:len(line)-len(marked)]
				snippet.Reset()
			case strings.HasPrefix(marked, "//snippet:end"):
				for _, page := range on {
					found[page] = append(found[page], strings.TrimRight(snippet.String(), "\n")+"\n")
				}
				on = nil
			case on != nil:
				snippet.WriteString(strings.TrimPrefix(line, indent))
			}
		}
	}
	return found
}

// What the pages show is what runs here, and nothing else.
func TestPagesHaveWhatRuns(t *testing.T) {
	snippets := mustReadSnippets(t)
	for page := range snippets {
		if !slices.Contains(pages, page) {
			t.Errorf("a snippet is of %s, which is not one of the pages", page)
		}
	}
	for _, page := range pages {
		text := mustReadPage(t, page)
		if strings.HasSuffix(page, ".go") {
			text = uncommented(text)
		}
		blocks := fenced(text, "go")
		for _, snippet := range snippets[page] {
			if strings.HasSuffix(page, ".go") {
				if !strings.Contains(text, indented(snippet)) {
					t.Errorf("%s does not have, as code of a comment:\n%s", page, snippet)
				}
			} else if !slices.Contains(blocks, snippet) {
				t.Errorf("%s does not have, as Go:\n%s", page, snippet)
			}
		}
		for _, block := range blocks {
			if !slices.Contains(snippets[page], block) {
				t.Errorf("%s has Go that does not run here:\n%s", page, block)
			}
		}
	}
}

// uncommented is the text of a file's comments.
func uncommented(file string) string {
	var text strings.Builder
	for line := range strings.Lines(file) {
		if comment, is := strings.CutPrefix(line, "//"); is {
			text.WriteString(comment)
		}
	}
	return text.String()
}

// indented is code as a comment has it.
func indented(code string) string {
	var text strings.Builder
	for line := range strings.Lines(code) {
		if line != "\n" {
			text.WriteByte('\t')
		}
		text.WriteString(line)
	}
	return text.String()
}
