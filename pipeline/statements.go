package pipeline

import (
	"embed"
	"fmt"
	"path"
	"strings"
)

//go:embed sql/*.sql
var statementFiles embed.FS

// Statements returns the SQL of the store by the name of its file in sql/, without ".sql", for
// those who measure it. Where the file is part of a statement, it is the smallest statement that
// has it, as the store runs it.
func Statements() (map[string]string, error) {
	files, err := statementFiles.ReadDir("sql")
	if err != nil {
		return nil, fmt.Errorf("read the statements: %w", err)
	}
	out := map[string]string{}
	for _, file := range files {
		text, err := statementFiles.ReadFile(path.Join("sql", file.Name()))
		if err != nil {
			return nil, fmt.Errorf("read the statements: %w", err)
		}
		out[strings.TrimSuffix(file.Name(), ".sql")] = string(text)
	}
	out["append_events"] = appendSmall.plain
	out["append_log"] = appendLone.logged
	out["dedupe_read_in_progress"] = readLogSQL
	out["dedupe_guard"] = readNewGuardedSQL
	return out, nil
}
