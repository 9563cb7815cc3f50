package endpoint

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// open makes the ledger append to a file from now on, unless path is empty.
func (l *ledger) open(path string) error {
	if path == "" {
		return nil
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("file of records: %w", err)
	}
	// A predecessor that was killed may have left a line unfinished.
	if _, err := file.Write([]byte{'\n'}); err != nil {
		_ = file.Close() // it is the write that failed
		return fmt.Errorf("file of records: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.file = file
	return nil
}

func (l *ledger) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		_ = l.file.Close() // what was answered had been written before
		l.file = nil
	}
}

// write appends the events to the file, if there is one, in one write. l.mu is held.
func (l *ledger) write(events []Record, now int64) error {
	if l.file == nil || len(events) == 0 {
		return nil
	}
	var lines bytes.Buffer
	encoder := json.NewEncoder(&lines)
	for i, e := range events {
		e.N, e.ReceivedAt = l.total.Received+int64(i)+1, time.Unix(0, now).UTC()
		if err := encoder.Encode(e); err != nil {
			return fmt.Errorf("encode a record: %w", err)
		}
	}
	if _, err := l.file.Write(lines.Bytes()); err != nil {
		return fmt.Errorf("write the records: %w", err)
	}
	return nil
}
