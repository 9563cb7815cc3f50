package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/waybillhq/waybill/pipeline/failpoint"
)

// failPoint is a row of the table of all fail points: a place in pipeline or sinks before or
// after something is written.
type failPoint struct {
	name string // <process>/<place>
	// anytime: load alone leads there, within a second or two.
	anytime bool
	// doubles: what is in hand when a process dies there may come to the endpoint again.
	doubles bool
	// loses: it stands behind an act whose answer can be lost as well.
	loses bool
}

// process is the kind of process that the point is in.
func (p failPoint) process() string {
	process, _, _ := strings.Cut(p.name, "/")
	return process
}

// failPoints is the table.
func failPoints() []failPoint {
	return []failPoint{
		{name: "ingest/before-commit-alone", anytime: true},
		{name: "ingest/after-commit-alone", anytime: true, loses: true},
		{name: "ingest/in-transaction", anytime: true},
		{name: "ingest/in-copy", anytime: true},
		{name: "ingest/before-commit", anytime: true},
		{name: "ingest/after-commit", anytime: true, loses: true},
		{name: "ingest/before-enqueue", anytime: true},
		{name: "ingest/after-enqueue", anytime: true},
		{name: "ingest/before-answer", anytime: true},
		{name: "ingest/after-answer", anytime: true},
		{name: "ingest/before-outbox-read", anytime: true},
		{name: "ingest/before-outbox-submit", anytime: true},
		{name: "ingest/after-outbox-answer", anytime: true},
		{name: "ingest/before-take-known"},
		{name: "ingest/after-take-known", loses: true},
		{name: "ingest/before-publish", anytime: true},
		{name: "ingest/after-publish", anytime: true, loses: true},

		{name: "forwarder/before-take"},
		{name: "forwarder/after-take", loses: true},
		{name: "forwarder/before-renew", anytime: true},
		{name: "forwarder/after-renew", anytime: true, loses: true},
		{name: "forwarder/before-release"},
		{name: "forwarder/after-release", loses: true},
		{name: "forwarder/before-pull", anytime: true},
		{name: "forwarder/after-pull", anytime: true},
		{name: "forwarder/before-send", anytime: true},
		{name: "forwarder/after-send", anytime: true, doubles: true, loses: true},
		{name: "forwarder/before-put", anytime: true},
		{name: "forwarder/after-put", anytime: true, loses: true},
		{name: "forwarder/before-cursor"},
		{name: "forwarder/after-cursor", loses: true},
		{name: "forwarder/before-remember", anytime: true, doubles: true},
		{name: "forwarder/after-remember", anytime: true, doubles: true},
		{name: "forwarder/before-receipt", anytime: true, doubles: true},
		{name: "forwarder/after-receipt", anytime: true, doubles: true, loses: true},
		{name: "forwarder/before-ack", anytime: true, doubles: true},
		{name: "forwarder/after-ack", anytime: true, doubles: true},

		{name: "janitor/before-lock", anytime: true},
		{name: "janitor/after-lock", anytime: true},
		{name: "janitor/before-commit", anytime: true, loses: true},
		{name: "janitor/after-commit", anytime: true, loses: true},
		{name: "janitor/before-ack", anytime: true},
		{name: "janitor/after-ack", anytime: true},
		{name: "janitor/before-claim"},
		{name: "janitor/after-claim", loses: true},
		{name: "janitor/before-publish"},
		{name: "janitor/after-publish", loses: true},
		{name: "janitor/before-expire"},
		{name: "janitor/after-expire", loses: true},
		{name: "janitor/before-create-stream"},
		{name: "janitor/after-create-stream", loses: true},
		{name: "janitor/before-create-consumer"},
		{name: "janitor/after-create-consumer", loses: true},
		{name: "janitor/before-trim"},
		{name: "janitor/after-trim", loses: true},
		{name: "janitor/before-shed"},
		{name: "janitor/after-shed", loses: true},

		{name: "waybill/before-emit"},
		{name: "waybill/after-emit"},
		{name: "waybill/after-emit-commit", loses: true},
		{name: "waybill/before-requeue"},
		{name: "waybill/after-requeue", loses: true},
	}
}

// ordersDir is where the processes look for what they are to do at which point.
func (s *system) ordersDir() string { return filepath.Join(s.dir, "orders") }

func (s *system) orderFile(name string) string { return filepath.Join(s.ordersDir(), name) }

// arm orders a process to do something at the nth hit of a point from now on, or from its
// next start on.
func (s *system) arm(name, point, action string, nth int) error {
	if err := os.MkdirAll(s.ordersDir(), 0o755); err != nil {
		return fmt.Errorf("arm %s: %w", point, err)
	}
	order := failpoint.Order{Point: point, Action: action, Nth: nth}
	draft := s.orderFile(name) + ".draft"
	if err := os.WriteFile(draft, []byte(order.String()), 0o644); err != nil {
		return fmt.Errorf("arm %s: %w", point, err)
	}
	if err := os.Rename(draft, s.orderFile(name)); err != nil {
		return fmt.Errorf("arm %s: %w", point, err)
	}
	return nil
}

// struck reports whether a process came to the point that it was armed at.
func (s *system) struck(name string) bool {
	_, err := os.Stat(s.orderFile(name) + failpoint.HitSuffix)
	return err == nil
}

// disarm takes an order back and reports whether it had been carried out.
func (s *system) disarm(name string) (struck bool, err error) {
	if err := os.Remove(s.orderFile(name)); err == nil {
		return false, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("disarm %s: %w", name, err)
	}
	if err := os.Remove(s.orderFile(name) + failpoint.HitSuffix); err != nil {
		return false, fmt.Errorf("disarm %s: %w", name, err)
	}
	return true, nil
}

// pointsOf are those of a kind of process that load alone leads to.
func pointsOf(process string) []failPoint {
	return slices.DeleteFunc(failPoints(), func(p failPoint) bool { return p.process() != process || !p.anytime })
}
