package cli

import (
	"fmt"
	"os"
	"reflect"

	"github.com/alecthomas/kong"
)

// Check judges one value of a flag, as text. Its error is about the value and not about the flag: what was found
// and what is wanted, such as `0; want 1 to 256`. That of a secret must not show the value.
type Check func(value string) error

// Checker is a command that judges its settings together, once each is right by itself.
type Checker interface {
	Check() error
}

// Checks is an option of NewParser: a flag tagged want:"NAME" must pass the check of that name, whether its value
// comes from the command line, a variable or a file; of a list each value. What is empty is not judged, unless the flag
// is required or has a default. Then the command is asked, if it is a Checker.
//
// The parser's own way, a Validate of the value's type, leaves out what variables set.
type Checks map[string]Check

var _ kong.Option = Checks(nil)

// Apply implements kong.Option.
func (c Checks) Apply(parser *kong.Kong) error {
	return kong.WithAfterApply(func(parsed *kong.Context) error { return c.judge(parsed) }).Apply(parser)
}

func (c Checks) judge(parsed *kong.Context) error {
	for _, flag := range parsed.Flags() {
		want := flag.Tag.Get("want")
		if want == "" {
			continue
		}
		check, ok := c[want]
		if !ok {
			return fmt.Errorf("--%s: is to pass a check %q that nobody made", flag.Name, want)
		}
		for _, text := range texts(flag.Target) {
			if text == "" && !flag.Required && flag.Default == "" {
				continue
			}
			if err := check(text); err != nil {
				return fmt.Errorf("%s: %w", setBy(parsed, flag), err)
			}
		}
	}
	command := parsed.Model.Node
	if selected := parsed.Selected(); selected != nil {
		command = selected
	}
	if checker, ok := command.Target.Addr().Interface().(Checker); ok {
		return checker.Check()
	}
	return nil
}

// texts are the values of a flag: of a list its elements.
func texts(v reflect.Value) (out []string) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			out = texts(v.Elem())
		}
	case reflect.Slice:
		for i := range v.Len() {
			out = append(out, texts(v.Index(i))...)
		}
	default:
		out = []string{fmt.Sprint(v.Interface())}
	}
	return out
}

// setBy names what a flag has its value from: the flag itself, or a variable.
func setBy(parsed *kong.Context, flag *kong.Flag) string {
	for _, p := range parsed.Path {
		if p.Flag != flag {
			continue
		}
		if variable, _ := SecretFile(flag); p.Resolved && variable != "" {
			return variable
		}
		return "--" + flag.Name
	}
	for _, variable := range flag.Envs {
		if _, set := os.LookupEnv(variable); set {
			return variable
		}
	}
	return "--" + flag.Name
}
