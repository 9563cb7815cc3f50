package sinks

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// The S3 server in memory, which users' tests have, passes for a real one: every test of the archive passes on it too.
func TestEveryTestOfTheArchiveOnAServerInMemory(t *testing.T) {
	self, err := os.Executable()
	mustNil(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, "-test.run=^TestArchive", "-test.v")
	cmd.Env = append(os.Environ(), serverEnv+"="+serverInMemory)
	out, err := cmd.CombinedOutput()
	text := string(out)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if n := strings.Count(text, "\n--- PASS: TestArchive"); n < 40 {
		t.Errorf("only %d tests ran:\n%s", n, text)
	}
}
