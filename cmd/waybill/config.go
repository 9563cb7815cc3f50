package main

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/alecthomas/kong"

	"github.com/waybillhq/waybill/internal/cli"
)

type configCommand struct {
	Print configPrintCommand `cmd:"" help:"Print the settings of a command as they are here and now, without secrets, and where each came from."`
}

// configPrintCommand shows what a command would run with if it were started with the same flags, in
// the same environment and directory.
type configPrintCommand struct {
	outputFlag
	Args []string `arg:"" optional:"" passthrough:"partial" placeholder:"COMMAND" predictor:"command" help:"The command, such as forwarder or deadletters ls, with the flags that it would get; those of config print itself, such as -o json, go before it. Default: ingest, forwarder and janitor in turn."`
}

// setting is the value of one flag, as -o json prints it.
type setting struct {
	Command string `json:"command"`
	Flag    string `json:"flag"`
	// Variable is the first of those that set it; empty: there is none.
	Variable string `json:"variable,omitempty"`
	// Value is a string, a number, a boolean or a list; of a secret what may be shown of it.
	Value any `json:"value"`
	// Source is flag, variable, file, running dev, default, or unset: a required one that nothing sets.
	Source string `json:"source"`
	// From is which variable, which file or which directory.
	From string `json:"from,omitempty"`
}

// Run prints the settings of each command that was asked for.
func (c *configPrintCommand) Run(con *console) error {
	lines := [][]string{c.Args}
	if len(c.Args) == 0 {
		lines = [][]string{{"ingest"}, {"forwarder"}, {"janitor"}}
	}
	table := tabwriter.NewWriter(con.out, 0, 0, 2, ' ', 0)
	for i, args := range lines {
		settings, err := settingsOf(args)
		if err != nil {
			err = fmt.Errorf("the settings of %s: %w", args[0], err)
			switch {
			case strings.Contains(err.Error(), "unknown flag"):
				err = fmt.Errorf("%w; flags of config print itself, such as -o json, go before %s", err, args[0])
			case strings.Contains(err.Error(), "unexpected argument"):
				err = fmt.Errorf("%w; give a command and its flags: `waybill --help` lists the commands", err)
			}
			return cli.WrongError{Err: err}
		}
		if !c.json() {
			if i > 0 {
				_, _ = fmt.Fprintln(table) // Flush tells
			}
			_, _ = fmt.Fprintf(table, "%s\tvalue\tfrom\n", settings[0].Command)
		}
		for _, s := range settings {
			if c.json() {
				err = c.print(con, "", s)
			} else {
				_, err = fmt.Fprintf(table, "--%s\t%s\t%s\n", s.Flag, s.text(), strings.TrimSpace(s.Source+" "+s.From))
			}
			if err != nil {
				return err
			}
		}
	}
	return table.Flush()
}

// text is the value for people.
func (s setting) text() string {
	switch v := s.Value.(type) {
	case string:
		if v == "" {
			return "-"
		}
		return oneLine(v)
	case []string:
		if len(v) == 0 {
			return "-"
		}
		return oneLine(strings.Join(v, ","))
	default:
		return fmt.Sprint(v)
	}
}

// settingsOf parses a command line but for what is required, and returns the settings in the order of
// the command's help.
func settingsOf(args []string) ([]setting, error) {
	stack := newRunningStack()
	parser, err := newParser(stack)
	if err != nil {
		return nil, err
	}
	parsed, err := kong.Trace(parser, args)
	if err != nil {
		return nil, err
	}
	if parsed.Error != nil {
		return nil, parsed.Error
	}
	if err := errors.Join(parsed.Reset(), parsed.Resolve()); err != nil {
		return nil, err
	}
	if _, err := parsed.Apply(); err != nil {
		return nil, err
	}
	node := parsed.Selected()
	if node == nil || !node.Leaf() {
		return nil, errors.New("it is no command by itself; give all of its name, such as deadletters ls")
	}
	name := strings.TrimPrefix(node.FullPath(), parser.Model.Name+" ")
	var settings []setting
	for _, group := range node.AllFlags(true) {
		for _, flag := range group {
			if !cli.Everywhere(flag) {
				settings = append(settings, newSetting(name, flag, parsed, stack))
			}
		}
	}
	if len(settings) == 0 {
		return nil, errors.New("it has none; `waybill --help` lists the commands")
	}
	return settings, nil
}

func newSetting(command string, flag *kong.Flag, parsed *kong.Context, stack *runningStack) setting {
	s := setting{Command: command, Flag: flag.Name, Value: plainValue(flag.Target)}
	if len(flag.Envs) > 0 {
		s.Variable = flag.Envs[0]
	}
	switch text, isText := s.Value.(string); {
	case cli.IsSecret(flag) && flag.Tag.Get("want") == "nats":
		s.Value = redactedNATS(flag.Target.String())
	case cli.IsSecret(flag):
		s.Value = redacted(flag.Target)
	case isText && strings.Contains(text, "://") && strings.Contains(text, "@"):
		s.Value = redactedURLs(text) // none of ours wants a password there, and somebody may have put one
	}
	s.Source, s.From = sourceOf(flag, parsed, stack)
	return s
}

// sourceOf says where the parser took a flag's value from.
func sourceOf(flag *kong.Flag, parsed *kong.Context, stack *runningStack) (source, from string) {
	for _, p := range parsed.Path {
		if p.Flag != flag {
			continue
		}
		if !p.Resolved {
			return "flag", ""
		}
		if variable, path := cli.SecretFile(flag); path != "" {
			return "file", path + " (" + variable + ")"
		}
		return "running dev", stack.at
	}
	for _, env := range flag.Envs {
		if _, set := os.LookupEnv(env); set {
			return "variable", env
		}
	}
	if flag.Required {
		return "unset", "(it is required)"
	}
	return "default", ""
}

// plainValue is a value as JSON should have it: what is no number and no boolean in words.
func plainValue(v reflect.Value) any {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return ""
		}
		v = v.Elem()
	}
	switch value := v.Interface().(type) {
	case fmt.Stringer: // durations and times
		return value.String()
	case []string:
		return value
	case map[string]string:
		return pairs(value)
	}
	switch v.Kind() {
	case reflect.Bool, reflect.String, reflect.Int, reflect.Int64, reflect.Float64:
		return v.Interface()
	}
	return fmt.Sprint(v.Interface())
}

func pairs(values map[string]string) []string {
	out := make([]string, 0, len(values))
	for _, key := range slices.Sorted(maps.Keys(values)) {
		out = append(out, key+"="+values[key])
	}
	return out
}

// hidden stands in place of a secret.
const hidden = "xxxxx"

// redacted is what may be shown of a secret: addresses without passwords, and names without values.
func redacted(v reflect.Value) any {
	switch value := v.Interface().(type) {
	case map[string]string:
		shown := map[string]string{}
		for key := range value {
			// Behind what can be a name a value may stand that was put there by mistake.
			name := strings.TrimLeft(key, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
			shown[strings.TrimSuffix(key, name)] = hidden
		}
		return pairs(shown)
	case string:
		return redactedURLs(value)
	default:
		return hidden
	}
}

// redactedURLs is of several, with commas between them. A comma may stand in a password or between the
// hosts of one URL too: then there is one.
func redactedURLs(text string) string {
	urls := strings.Split(text, ",")
	for _, u := range urls[1:] {
		if !strings.Contains(u, "://") {
			return redactedURL(text)
		}
	}
	for i := range urls {
		urls[i] = redactedURL(urls[i])
	}
	return strings.Join(urls, ",")
}

// bareHost is an address of NATS that has neither a user nor a token in it.
var bareHost = regexp.MustCompile(`^[-.\w]+(:\d+)?$`)

// redactedNATS is redactedURLs of servers whose addresses need no scheme.
func redactedNATS(text string) string {
	for part := range strings.SplitSeq(text, ",") {
		if !bareHost.MatchString(strings.TrimPrefix(part, "nats://")) {
			return redactedURLs(text)
		}
	}
	return text
}

// redactedURL shows of what is no URL nothing.
func redactedURL(text string) string {
	if text == "" {
		return ""
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User == nil && strings.Contains(text, "@") { // a password may have ended the host
		return hidden
	}
	if u.User != nil {
		switch _, both := u.User.Password(); {
		case both:
			u.User = url.UserPassword(u.User.Username(), hidden)
		case !strings.HasPrefix(u.Scheme, "postgres"):
			u.User = url.User(hidden) // alone it is a token
		}
	}
	query := u.Query()
	for key := range query {
		if key != "sslmode" && key != "host" && key != "application_name" {
			query.Set(key, hidden)
		}
	}
	u.RawQuery = query.Encode()
	return u.String()
}
