package replay

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/waybillhq/waybill/sinks"
)

// Foreign looks whether an archive that a replay is to write into has events that no replay wrote, and
// names the first of them; empty: there is none. It looks at the first event of each lane.
func Foreign(ctx context.Context, archive *sinks.ArchiveReader) (string, error) {
	lanes, err := archive.Lanes(ctx)
	if err != nil {
		return "", err
	}
	for _, lane := range lanes {
		for record, err := range archive.Records(ctx, lane, 0) {
			if err != nil {
				return "", err
			}
			var marked struct {
				Replay string `json:"replayid"`
			}
			if err := json.Unmarshal(record.Line, &marked); err != nil {
				return "", fmt.Errorf("archive lane %d, offset %d: %w", lane, record.Offset, err)
			}
			if marked.Replay == "" {
				return fmt.Sprintf("event %q of %s, without a %s", record.ID, record.Source, Attribute), nil
			}
			break
		}
	}
	return "", nil
}
