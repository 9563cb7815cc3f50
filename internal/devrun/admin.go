package devrun

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// AdminFile is the name of the file, in the stack's directory, that tells people where to look at
// its processes: a line for a shell to read sets a variable to the URL of each admin address. That of
// forwarder-1 is forwarder_1, and endpoint that of the receiving endpoint.
const AdminFile = "admin"

// AdminPath is where that file is.
func (s *Stack) AdminPath() string { return filepath.Join(s.config.Dir, AdminFile) }

func (s *Stack) writeAdmin() error {
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(s.admins)) {
		writeAssignment(&text, name, s.Admin(name))
	}
	if s.EndpointAdmin != "" {
		writeAssignment(&text, "endpoint", s.EndpointAdmin)
	}
	if err := os.WriteFile(s.AdminPath(), []byte(text.String()), 0o644); err != nil {
		return fmt.Errorf("say where to look at the processes: %w", err)
	}
	return nil
}

// writeAssignment writes an assignment to the variable that is named like a part. What a shell would
// make of a value that somebody gave does not matter: it is quoted.
func writeAssignment(text *strings.Builder, part, value string) {
	name, quoted := strings.ReplaceAll(part, "-", "_"), strings.ReplaceAll(value, "'", `'\''`)
	fmt.Fprintf(text, "%s='%s'\n", name, quoted)
}
