package pipeline

import (
	"embed"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// planAnew has a statement planned for each execution. It is for those that look rows up by lists of
// keys in tables that are mostly empty and seldom searched: a plan that was made then, and kept,
// walks over the whole index of a table that has grown since, once for each key. A plan is made
// for the size that the table has, whatever its statistics say.
const planAnew = pgx.QueryExecModeCacheDescribe

// plannedAnew are the statements that are executed so, by their files' names.
var plannedAnew = []string{"purge_dead_letters", "purge_letters", "read_letters", "requeue", "settle_late", "settle_late_requeued", "split_damaged"}

// PlannedAnew reports whether the store has the statement of a file in sql/ planned for each
// execution. Connections keep the plans of all others.
func PlannedAnew(name string) bool { return slices.Contains(plannedAnew, name) }

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
	out["append_log"] = appendOneKey.logged
	out["dedupe_read_in_progress"] = readLogSQL
	out["dedupe_guard"] = readNewGuardedSQL
	return out, nil
}
