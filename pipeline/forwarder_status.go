package pipeline

import (
	"sync"
	"time"
)

// WorkerStatus is how a worker fares: one lane of one sink.
type WorkerStatus struct {
	Lane int    `json:"lane"`
	Sink string `json:"sink"`
	// Since is when the lane was taken.
	Since time.Time `json:"since"`
	// Problem is what keeps the worker from delivering, and ProblemSince since when.
	Problem      string    `json:"problem,omitempty"`
	ProblemSince time.Time `json:"problem_since,omitzero"`
	// OldestAccepted is when the oldest batch in the request in hand was accepted.
	OldestAccepted time.Time `json:"oldest_accepted,omitzero"`
}

// SinkStatus is how a sink fares in this process.
type SinkStatus struct {
	Sink string `json:"sink"`
	// Down is the newest error while the sink is not tried but for probes, since DownSince.
	Down      string    `json:"down,omitempty"`
	DownSince time.Time `json:"down_since,omitzero"`
}

// ForwarderStatus is the state of a forwarder.
type ForwarderStatus struct {
	ID      string         `json:"id"`
	Sinks   []SinkStatus   `json:"sinks"`
	Workers []WorkerStatus `json:"workers"` // by lane and sink
	// Vacant are lanes of its sinks that no forwarder has held for longer than two TTLs of
	// a lease, by lane and sink.
	Vacant []Vacancy `json:"vacant,omitempty"`
	// Paused is what stands still of its sinks because an operator wants it to, by sink.
	Paused map[string]SinkPauses `json:"paused,omitempty"`
}

// workerStatus collects what a worker says of itself.
type workerStatus struct {
	lane  int
	sink  string
	since time.Time

	mu       sync.Mutex // guards what follows
	consumer trouble
	sending  trouble
	receipts trouble
	oldest   time.Time
	memory   int     // of the request in hand, in bytes
	puller   *puller // of the session; nil: there is none
}

// update returns the trouble after one more attempt.
func (t trouble) update(err error) trouble {
	switch {
	case err == nil:
		return trouble{}
	case t.err == nil:
		return trouble{err: err, since: time.Now()}
	default:
		return trouble{err: err, since: t.since}
	}
}

// note says how the consumer fares, and returns whether trouble begins.
func (s *workerStatus) note(err error) (begins bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	begins = s.consumer.err == nil && err != nil
	s.consumer = s.consumer.update(err)
	return begins
}

// send says how the newest request fared.
func (s *workerStatus) send(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sending = s.sending.update(err)
}

// receipt says how the newest attempt to store a receipt fared.
func (s *workerStatus) receipt(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.receipts = s.receipts.update(err)
}

// holds says that a batch is in hand, of a request that takes so many bytes now.
func (s *workerStatus) holds(b *Batch, memory int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.memory = memory
	if s.oldest.IsZero() || b.AcceptedAt.Before(s.oldest) {
		s.oldest = b.AcceptedAt
	}
}

// idle says that no batch is in hand.
func (s *workerStatus) idle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.oldest, s.memory = time.Time{}, 0
}

// reads says what the worker reads from, which may be nil.
func (s *workerStatus) reads(p *puller) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.puller = p
}

// held is how many bytes the worker holds.
func (s *workerStatus) held() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.puller == nil {
		return s.memory
	}
	return s.memory + s.puller.memory()
}

// problem returns what is first in the way of a delivery.
func (s *workerStatus) problem() trouble {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range []trouble{s.receipts, s.sending, s.consumer} {
		if t.err != nil {
			return t
		}
	}
	return trouble{}
}

func (s *workerStatus) snapshot() WorkerStatus {
	w := WorkerStatus{Lane: s.lane, Sink: s.sink, Since: s.since}
	if t := s.problem(); t.err != nil {
		w.Problem, w.ProblemSince = t.err.Error(), t.since
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	w.OldestAccepted = s.oldest
	return w
}
