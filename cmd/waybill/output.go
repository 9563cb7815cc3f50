package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
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

// writeTo writes to the file at path, or to out where that is empty.
func writeTo(path string, out io.Writer, write func(io.Writer) error) error {
	if path == "" {
		return write(out)
	}
	var whole bytes.Buffer // a file is not left half written
	if err := write(&whole); err != nil {
		return err
	}
	if err := os.WriteFile(path, whole.Bytes(), 0o644); err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	return nil
}
