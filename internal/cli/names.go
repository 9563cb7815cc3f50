package cli

import (
	"regexp"
	"strings"

	"github.com/alecthomas/kong"
)

// Named returns err with the names of the command's flags in place of those that the packages below have for the same
// settings: `queue bytes: 1; …`, as they begin what Validate says, and `S3Config.Region (WAYBILL_S3_REGION)`. It
// returns nil for nil.
func Named(err error, parsed *kong.Context) error {
	if err == nil || parsed == nil {
		return err
	}
	command := parsed.Model.Node
	if selected := parsed.Selected(); selected != nil {
		command = selected
	}
	text := nameFlags(err.Error(), command.Path(), parsed.Flags())
	if text == err.Error() {
		return err
	}
	return &namedError{text: text, err: err}
}

// namedError is an error in the words of the command line.
type namedError struct {
	text string
	err  error
}

func (e *namedError) Error() string { return e.text }
func (e *namedError) Unwrap() error { return e.err }

// field is one of a struct, with the variable that sets it.
var field = regexp.MustCompile(`(^|[^-.\w])(?:[A-Z]\w*\.)?[A-Z]\w* \((WAYBILL_\w+)\)`)

func nameFlags(text, command string, flags []*kong.Flag) string {
	byName, byVariable := map[string]bool{}, map[string]string{}
	for _, flag := range flags {
		byName[flag.Name] = true
		for _, variable := range flag.Envs {
			byVariable[variable] = flag.Name
		}
	}
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		before := ""
		if behind, ok := strings.CutPrefix(line, command+": "); ok { // as the parser begins what Validate says
			before, line = command+": ", behind
		}
		name, rest, _ := strings.Cut(line, ":")
		if flag := strings.ToLower(strings.ReplaceAll(name, " ", "-")); byName[flag] && rest != "" {
			line = "--" + flag + ":" + rest
		}
		line = before + line
		lines[i] = field.ReplaceAllStringFunc(line, func(found string) string {
			parts := field.FindStringSubmatch(found)
			if flag, ok := byVariable[parts[2]]; ok {
				return parts[1] + "--" + flag + " (" + parts[2] + ")"
			}
			return found
		})
	}
	return strings.Join(lines, "\n")
}
