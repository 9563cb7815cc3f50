package main

import (
	"github.com/alecthomas/kong"
	kongcompletion "github.com/jotaen/kong-completion"
	"github.com/posener/complete"
)

// completionCommand says how a shell learns to complete waybill's commands, flags and values.
type completionCommand struct{ kongcompletion.Completion }

// Help is the library's in our words.
func (*completionCommand) Help() string {
	return "Prints the line that lets the shell complete waybill's commands, flags and values, for the session or, in the shell's init file, for all that follow. Without a shell's name it is for the login shell."
}

// completeLine answers, and ends the process, where a shell asks what a line may go on with: the
// variable COMP_LINE holds it then.
func completeLine(parser *kong.Kong) {
	kongcompletion.Register(parser, kongcompletion.WithPredictor("command", complete.PredictSet(commandNames(parser)...)))
}

// commandNames are the commands that config print takes, one word each.
func commandNames(parser *kong.Kong) (names []string) {
	for _, node := range parser.Model.Children {
		if !node.Hidden {
			names = append(names, node.Name)
		}
	}
	return names
}
