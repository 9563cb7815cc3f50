package cli

import (
	"errors"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// A program without commands says which one it is, whatever else its command line lacks.
func TestVersionFlag(t *testing.T) {
	var out strings.Builder
	left := errors.New("it ended")
	options := append(versionFlag("test"), Checks{"even": even}, kong.Writers(&out, &out), kong.Exit(func(int) { panic(left) }))
	parser, err := NewParser("test", "", &checked{}, options...)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if ended := recover(); ended != left || !strings.HasPrefix(out.String(), "test ") || !strings.Contains(out.String(), " go1.") {
			t.Errorf("%v: %q", ended, out.String())
		}
	}()
	_, err = parser.Parse([]string{"--version"})
	t.Errorf("it goes on: %v", err)
}
