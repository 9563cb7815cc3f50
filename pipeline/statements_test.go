package pipeline

import (
	"os"
	"strings"
	"testing"
)

// TestStatementsAreWhatTheStoreRuns: each file is in one, and each can be prepared as it is.
func TestStatementsAreWhatTheStoreRuns(t *testing.T) {
	statements, err := Statements()
	if err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir("sql")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != len(statements) {
		t.Errorf("%d statements of %d files", len(statements), len(files))
	}
	conn, err := mustStore(t).pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	for _, file := range files {
		text, err := os.ReadFile("sql/" + file.Name())
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(file.Name(), ".sql")
		// The log's fingerprints are another parameter where other parts come before.
		if last := string(text[max(0, len(text)-100):]); !strings.Contains(statements[name], last) && name != "append_log" {
			t.Errorf("the statement of %s lacks its text", file.Name())
		}
		if _, err := conn.Conn().Prepare(t.Context(), name, statements[name]); err != nil {
			t.Errorf("%s: %v", file.Name(), err)
		}
	}
}
