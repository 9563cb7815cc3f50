package cli

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// checked is a command with flags of all the kinds that are judged.
type checked struct {
	Size    int      `want:"even" default:"2"`
	Lane    []int    `want:"even"`
	Address string   `want:"even"`
	Secret  string   `want:"even" secret:"" required:""`
	Queue   int      `name:"queue-bytes" default:"4"`
	Region  string   `default:"x"`
	Names   []string `want:"even"`
}

// Check names settings as the packages below the commands do.
func (c *checked) Check() error {
	var errs []error
	if c.Queue < 4 {
		errs = append(errs, errors.New("queue bytes: 1; want at least 4"))
	}
	if c.Region == "" {
		errs = append(errs, errors.New("S3Config.Region (WAYBILL_REGION) is empty, and Other (WAYBILL_OTHER) is not"))
	}
	return errors.Join(errs...)
}

func even(value string) error {
	if len(value) == 0 {
		return errors.New("is empty; want digits")
	}
	if strings.ContainsAny(value[len(value)-1:], "02468") {
		return nil
	}
	return errors.New("is odd; want an even one")
}

func mustRefuse(t *testing.T, want string, args ...string) {
	t.Helper()
	parser, err := NewParser("test", "", &checked{}, Checks{"even": even})
	if err != nil {
		t.Fatal(err)
	}
	_, err = parser.Parse(args)
	err = Explain(err)
	var parse *kong.ParseError
	switch {
	case want == "" && err != nil:
		t.Errorf("%s: %v", args, err)
	case want != "" && (err == nil || err.Error() != want || !errors.As(err, &parse)):
		t.Errorf("%s: %v, want %s", args, err, want)
	}
}

// Wherever a value comes from it is judged, and what set it is named.
func TestChecks(t *testing.T) {
	mustRefuse(t, "", "--secret=2")
	mustRefuse(t, "", "--secret=2", "--size=4", "--lane=2,4", "--address=6", "--names=2,8")
	mustRefuse(t, "", "--secret=2", "--address=")
	mustRefuse(t, "--size: is odd; want an even one", "--secret=2", "--size=3")
	mustRefuse(t, "--lane: is odd; want an even one", "--secret=2", "--lane=2,3")
	mustRefuse(t, "--names: is odd; want an even one", "--secret=2", "--names=2,3")
	mustRefuse(t, "--secret: is empty; want digits", "--secret=")
	t.Setenv("WAYBILL_SIZE", "5")
	mustRefuse(t, "", "--secret=2", "--size=4")
	mustRefuse(t, "WAYBILL_SIZE: is odd; want an even one", "--secret=2")
	t.Setenv("WAYBILL_SIZE", "6")
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte("7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("WAYBILL_SECRET_FILE", path)
	mustRefuse(t, "WAYBILL_SECRET_FILE: is odd; want an even one")
	mustRefuse(t, "", "--secret=2")
}

// A check that is missing is not a check that everything passes.
func TestMissingCheck(t *testing.T) {
	parser, err := NewParser("test", "", &checked{}, Checks{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.Parse([]string{"--secret=2"}); err == nil {
		t.Error("a check that nobody made lets values pass")
	}
}

// What a configuration calls by its own names is called by those of the flags.
func TestNamed(t *testing.T) {
	mustRefuse(t, "--queue-bytes: 1; want at least 4", "--secret=2", "--queue-bytes=1")
	mustRefuse(t, "--size: is odd; want an even one", "--secret=2", "--size=1", "--queue-bytes=1")
	mustRefuse(t, "--queue-bytes: 1; want at least 4\n--region (WAYBILL_REGION) is empty, and Other (WAYBILL_OTHER) is not",
		"--secret=2", "--queue-bytes=1", "--region=")
	var commands struct {
		Sub checked `cmd:""`
	}
	parser, err := NewParser("test", "", &commands, Checks{"even": even})
	if err != nil {
		t.Fatal(err)
	}
	_, err = parser.Parse([]string{"sub", "--secret=2", "--queue-bytes=1"})
	if err = Explain(err); err == nil || err.Error() != "--queue-bytes: 1; want at least 4" {
		t.Errorf("of a command: %v", err)
	}
	parsed, err := parser.Parse([]string{"sub", "--secret=2"})
	if err != nil {
		t.Fatal(err)
	}
	failure := NegativeError{errors.New("size: the pipeline has 4; --region (WAYBILL_REGION) is right")}
	err = Named(failure, parsed)
	if negative := (NegativeError{}); !errors.As(err, &negative) || err.Error() != "--size: the pipeline has 4; --region (WAYBILL_REGION) is right" {
		t.Errorf("of a failure: %v", err)
	}
	if Named(nil, parsed) != nil || Named(failure, nil) != error(failure) {
		t.Error("what is no error, or of no command, is changed")
	}
}
