package main

import (
	"encoding/json"
	"fmt"
)

// outputFlag is how a command prints its result: for people, or one JSON object a line.
type outputFlag struct {
	Output string `short:"o" env:"-" enum:"text,json" default:"text" help:"Form of the result: text, or json, one object a line."`
}

func (f outputFlag) json() bool { return f.Output == "json" }

// print writes a result: text, or value as JSON.
func (f outputFlag) print(con *console, text string, value any) error {
	if !f.json() {
		_, err := fmt.Fprintln(con.out, text)
		return err
	}
	encoder := json.NewEncoder(con.out)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}
