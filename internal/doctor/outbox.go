package doctor

import (
	"context"
	"fmt"
	"time"

	"github.com/waybillhq/waybill/pipeline"
)

// oldRow is how long a row may be in the outbox before it is worth a word.
const oldRow = time.Minute

// outbox looks at what transactions have emitted and no ingest has taken.
func (d *database) outbox(ctx context.Context) {
	survey, err := pipeline.SurveyOutboxOf(ctx, d.conn)
	if err != nil {
		d.warn("outbox", "see whether the role may read waybill.outbox", "cannot be found out: %v", err)
		return
	}
	if survey.Refused > 0 {
		d.warn("outbox", fmt.Sprintf("mend what it is about and SELECT waybill.outbox_retry(%d), or delete the row; SELECT id, reason FROM waybill.outbox WHERE refused_at IS NOT NULL shows all", survey.FirstRefused),
			"%d rows are no events; the first, id %d: %s", survey.Refused, survey.FirstRefused, survey.Reason)
	}
	switch {
	case survey.Waiting > 0 && survey.Oldest > oldRow:
		d.warn("outbox", "start an ingest with --outbox, or see what /readyz of those that run says", "%d rows wait, the oldest for %s", survey.Waiting, survey.Oldest.Round(time.Second))
	case survey.Refused == 0:
		d.ok("outbox", "%d rows wait", survey.Waiting)
	}
}
