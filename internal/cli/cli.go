// Package cli turns a configuration struct into a command: flags, WAYBILL_* environment
// variables, *_FILE for secrets, signals and exit codes. Nothing below it touches any of
// these.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
)

// Runner is a configuration that knows how to run.
type Runner interface {
	Run(ctx context.Context) error
}

// Main parses the arguments and the environment into config, runs it until it ends or a
// signal comes, and exits. A second signal ends the process at once.
func Main(name, description string, config Runner, options ...kong.Option) {
	parser, err := NewParser(name, description, config, append(versionFlag(name), options...)...)
	if err != nil {
		panic(err) // a mistake in the struct's tags
	}
	parsed, err := parser.Parse(os.Args[1:])
	parser.FatalIfErrorf(Explain(err))
	Exit(name, Named(RunUntilSignal(config.Run), parsed))
}

// NewParser returns a parser whose flags can be set by WAYBILL_<FLAG> variables too. Among the options are the values
// behind ${…} in tags (kong.Vars), and Checks.
func NewParser(name, description string, config any, options ...kong.Option) (*kong.Kong, error) {
	all := []kong.Option{
		kong.Name(name), kong.Description(description), kong.DefaultEnvars("WAYBILL"),
		kong.ShortUsageOnError(), kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.Resolvers(secretFiles{}), pairsMapper(), kong.Exit(exitParsing),
	}
	parser, err := kong.New(config, append(all, options...)...)
	if err != nil {
		return nil, fmt.Errorf("command %s: %w", name, err)
	}
	return parser, nil
}

// exitParsing ends the program after its command line was read: with help, or because something is wrong with it. The
// parser has another status for what is wrong with a variable.
func exitParsing(code int) {
	if code != 0 {
		code = exitWrong
	}
	os.Exit(code)
}

// Explain says of the error of a command line which flag it is about, and of flags that it lacks which variables set
// them too. It returns nil for nil.
func Explain(err error) error {
	var parse *kong.ParseError
	if !errors.As(err, &parse) {
		return err
	}
	if strings.Contains(parse.Error(), ": expected duration but got ") {
		return fmt.Errorf("%w; want a number and its unit, such as 500ms, 30s or 2h", err)
	}
	if !strings.HasPrefix(parse.Error(), "missing flags: ") {
		return Named(err, parse.Context)
	}
	var variables []string
	for _, flag := range parse.Context.Flags() {
		if flag.Required && len(flag.Envs) > 0 && strings.Contains(parse.Error(), "--"+flag.Name+"=") {
			variables = append(variables, flag.Envs[0])
		}
	}
	if len(variables) == 0 {
		return err
	}
	return fmt.Errorf("%w, or in the environment %s", err, strings.Join(variables, ", "))
}

// RunUntilSignal runs f with a context that ends with the first SIGINT or SIGTERM.
func RunUntilSignal(f func(context.Context) error) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		stop() // the next signal has its default effect
	}()
	return f(ctx)
}

// Exit prints err, if there is one, and exits with the status that ExitCodes has for it. What ends well
// by a signal returns no error.
func Exit(name string, err error) { os.Exit(status(os.Stderr, name, err)) }

// secretFiles resolves a flag tagged secret from the file that <ENV>_FILE names, so that
// secrets need not stand in the environment.
type secretFiles struct{}

func (secretFiles) Validate(*kong.Application) error { return nil }

func (secretFiles) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	variable, path := SecretFile(flag)
	if path == "" {
		return nil, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", variable, err)
	}
	return strings.TrimSpace(string(data)), nil
}

// IsSecret tells the flags whose values are not for everybody's eyes.
func IsSecret(flag *kong.Flag) bool { return flag.Tag.Has("secret") }

// SecretFile returns the variable that names a file with a flag's value, and the file; none where the
// value's own variable is set, which goes first, or the flag is no secret.
func SecretFile(flag *kong.Flag) (variable, path string) {
	if !IsSecret(flag) {
		return "", ""
	}
	for _, env := range flag.Envs {
		if os.Getenv(env) != "" {
			return "", ""
		}
		if path := os.Getenv(env + "_FILE"); path != "" {
			return env + "_FILE", path
		}
	}
	return "", ""
}
