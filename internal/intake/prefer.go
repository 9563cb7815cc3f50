package intake

import (
	"net/http"
	"strings"
)

// isLenient reports whether the request prefers handling=lenient (RFC 7240). Of several
// handling preferences the first counts, as the standard has it.
func isLenient(header http.Header) bool {
	for _, line := range header.Values("Prefer") {
		for preference := range strings.SplitSeq(line, ",") {
			preference, _, _ = strings.Cut(preference, ";")
			name, value, _ := strings.Cut(preference, "=")
			if strings.EqualFold(strings.TrimSpace(name), "handling") {
				return strings.EqualFold(strings.Trim(strings.TrimSpace(value), `"`), "lenient")
			}
		}
	}
	return false
}
