package cli

import (
	"errors"
	"fmt"
	"io"
)

// ExitCode is a status that a program ends with, and what it means.
type ExitCode struct {
	Code    int
	Meaning string
}

// The statuses of Waybill's programs.
const (
	exitFailed   = 1
	exitNegative = 3
	exitWrong    = 80
)

// ExitCodes are all of them, for the documentation.
func ExitCodes() []ExitCode {
	return []ExitCode{
		{0, "All went well. To be interrupted is the proper end of what runs until then: `dev` (without `--once`), `endpoint`, `ingest`, `forwarder`, `janitor`, `tail`, `status --watch`, and `emit --every` without `--count`."},
		{exitFailed, "Something failed, a server did not answer, `doctor` found a fault, or the command was interrupted. The end of standard error says what."},
		{exitNegative, "The command did its work, and the answer is no: `expect` was not met in time, `audit` misses events, `archive verify` found damage, `replay` could not deliver every event."},
		{exitWrong, "Wrong flags, arguments or variables, as far as the command line alone tells, or a lane or a sink that the pipeline does not have; nothing was done."},
	}
}

// NegativeError is the error of a command that did its work and has a bad answer to give, as
// opposed to one that could not find out.
type NegativeError struct{ Err error }

func (e NegativeError) Error() string { return e.Err.Error() }
func (e NegativeError) Unwrap() error { return e.Err }

// WrongError is the error of a command that was asked for what cannot be done, and has done nothing, where the
// command line alone did not tell.
type WrongError struct{ Err error }

func (e WrongError) Error() string { return e.Err.Error() }
func (e WrongError) Unwrap() error { return e.Err }

// status prints err, if there is one, and returns the status to end with.
func status(w io.Writer, name string, err error) int {
	if err == nil {
		return 0
	}
	_, _ = fmt.Fprintf(w, "%s: %v\n", name, err) // there is nobody else to tell
	if negative := (NegativeError{}); errors.As(err, &negative) {
		return exitNegative
	}
	if wrong := (WrongError{}); errors.As(err, &wrong) {
		return exitWrong
	}
	return exitFailed
}
