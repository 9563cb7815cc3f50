package cli

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// WriteReference writes what is below a command as Markdown: every command that is not hidden, with its
// arguments, flags, variables and defaults, from the same model that parses them.
func WriteReference(w io.Writer, root *kong.Node) error {
	out := bufio.NewWriter(w)
	for _, command := range root.Children {
		writeCommand(out, command)
	}
	return out.Flush()
}

// writeCommand is called with a writer that keeps its first error.
func writeCommand(w *bufio.Writer, node *kong.Node) {
	if node.Hidden {
		return
	}
	_, _ = fmt.Fprintf(w, "\n%s %s\n\n%s\n", strings.Repeat("#", node.Depth()+2), node.FullPath(), node.Help)
	if node.Detail != "" {
		_, _ = fmt.Fprintf(w, "\n%s\n", strings.TrimSpace(node.Detail))
	}
	if len(node.Children) > 0 {
		for _, child := range node.Children {
			writeCommand(w, child)
		}
		return
	}
	_, _ = fmt.Fprintf(w, "\n    %s\n", usage(node))
	writeArguments(w, node.Positional)
	writeFlags(w, node)
}

// usage is the command's line: what is required, and whether there is more.
func usage(node *kong.Node) string {
	parts := []string{node.FullPath()}
	more := false
	for _, flag := range flagsOf(node) {
		if flag.Required {
			parts = append(parts, flag.Summary())
		} else {
			more = true
		}
	}
	for _, argument := range node.Positional {
		parts = append(parts, argument.Summary())
	}
	if more {
		parts = append(parts, "[flags]")
	}
	return strings.Join(parts, " ")
}

// Everywhere reports a flag that every command has and that sets nothing.
func Everywhere(flag *kong.Flag) bool { return flag.Name == "help" || flag.Name == "version" }

// flagsOf are the command's own flags and those of the commands above it, but for those that are everywhere.
func flagsOf(node *kong.Node) (flags []*kong.Flag) {
	for _, group := range node.AllFlags(true) {
		for _, flag := range group {
			if !Everywhere(flag) {
				flags = append(flags, flag)
			}
		}
	}
	return flags
}

func writeArguments(w *bufio.Writer, arguments []*kong.Positional) {
	if len(arguments) == 0 {
		return
	}
	_, _ = fmt.Fprint(w, "\n| argument | default | |\n|---|---|---|\n")
	for _, a := range arguments {
		_, _ = fmt.Fprintf(w, "| `%s` | %s | %s |\n", a.Summary(), defaultOf(a), meaning(a))
	}
}

func writeFlags(w *bufio.Writer, node *kong.Node) {
	flags := flagsOf(node)
	if len(flags) == 0 {
		return
	}
	_, _ = fmt.Fprint(w, "\n| flag | variable | default | |\n|---|---|---|---|\n")
	for _, flag := range flags {
		name := "`--" + flag.Name + "`"
		if flag.Tag.Negatable != "" {
			name = "`--[no-]" + flag.Name + "`"
		}
		if flag.Short != 0 {
			name = fmt.Sprintf("`-%c`, %s", flag.Short, name)
		}
		_, _ = fmt.Fprintf(w, "| %s | %s | %s | %s |\n", name, variablesOf(flag), defaultOf(flag.Value), meaning(flag.Value))
	}
}

// variablesOf names the variables that set a flag, and those that name a file with its value.
func variablesOf(flag *kong.Flag) string {
	var names []string
	for _, env := range flag.Envs {
		names = append(names, "`"+env+"`")
		if IsSecret(flag) {
			names = append(names, "`"+env+"_FILE`")
		}
	}
	return strings.Join(names, ", ")
}

func defaultOf(v *kong.Value) string {
	switch {
	case v.Required:
		return "required"
	case v.HasDefault && v.Default != "":
		return "`" + cell(v.Default) + "`"
	case v.IsBool():
		return "`false`"
	default:
		return ""
	}
}

// meaning is the help, with the values that are allowed where it does not name them.
func meaning(v *kong.Value) string {
	help := v.Help
	if v.Enum == "" {
		return cell(help)
	}
	values := slices.DeleteFunc(v.EnumSlice(), func(value string) bool { return value == "" }) // that it may be left out
	for _, value := range values {
		if !strings.Contains(help, value) {
			return cell(strings.TrimSuffix(help, ".") + ". One of: " + strings.Join(values, ", ") + ".")
		}
	}
	return cell(help)
}

// cell keeps a text in its cell of a table.
func cell(text string) string {
	return strings.ReplaceAll(strings.Join(strings.Fields(text), " "), "|", `\|`)
}
