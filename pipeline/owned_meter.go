package pipeline

import (
	"errors"
	"fmt"
	"sync"

	"go.opentelemetry.io/otel/metric"
)

// ownedMeter makes instruments as the meter does, and takes the callbacks back when their owner
// ends, whose memory they would keep as long as the meter lives.
type ownedMeter struct {
	metric.Meter

	mu    sync.Mutex
	owned []metric.Registration // guarded by mu
}

// RegisterCallback implements metric.Meter.
func (m *ownedMeter) RegisterCallback(f metric.Callback, instruments ...metric.Observable) (metric.Registration, error) {
	r, err := m.Meter.RegisterCallback(f, instruments...)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.owned = append(m.owned, r)
	return r, nil
}

// release takes all callbacks back.
func (m *ownedMeter) release() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for _, r := range m.owned {
		errs = append(errs, r.Unregister())
	}
	m.owned = nil
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("take the instruments back: %w", err)
	}
	return nil
}
