package main

import (
	"strings"
	"testing"
)

// A shell that asks gets commands, flags and values, and the command that teaches it names them.
func TestCompletion(t *testing.T) {
	dir := t.TempDir()
	for line, want := range map[string]string{
		"waybill dead":                      "deadletters",
		"waybill lanes pa":                  "pause",
		"waybill deadletters ls --sin":      "--sink",
		"waybill deadletters ls --state la": "late",
		"waybill status -o js":              "json",
		"waybill config print forw":         "forwarder",
	} {
		out, status := waybill(t, dir, []string{"COMP_LINE=" + line})
		if status != 0 || !strings.Contains("\n"+out, "\n"+want+"\n") {
			t.Errorf("%q: status %d, %q", line, status, out)
		}
	}
	if out, _ := waybill(t, dir, []string{"COMP_LINE=waybill ref"}); strings.Contains(out, "reference") {
		t.Errorf("it completes a hidden command: %q", out)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if out, status := waybill(t, dir, nil, "completion", "-c", shell); status != 0 || !strings.Contains(out, "complete ") || !strings.Contains(out, "waybill") {
			t.Errorf("%s: status %d, %q", shell, status, out)
		}
	}
	if out, status := waybill(t, dir, nil, "completion", "tcsh"); status != 80 || !strings.Contains(out, "tcsh") {
		t.Errorf("status %d, %q", status, out)
	}
}
