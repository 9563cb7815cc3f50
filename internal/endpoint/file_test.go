package endpoint

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// The file of records outlives the ledger, and a line that a killed one left unfinished
// spoils no other.
func TestRecordsFileOutlivesTheLedger(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records")
	for _, id := range []string{"a", "b"} {
		l := newLedger(10)
		if err := l.open(path); err != nil {
			t.Fatal(err)
		}
		if err := l.add([]Record{{Source: "/s", Type: "t", ID: id, Seqnum: 7, DataCRC32C: 9}}); err != nil {
			t.Fatal(err)
		}
		l.close()
		file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := file.WriteString(`{"n":2,"sour`); err != nil {
			t.Fatal(err)
		}
		file.Close()
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var ids string
	for line := range bytes.Lines(data) {
		var r Record
		if json.Unmarshal(line, &r) == nil && r.Seqnum == 7 && r.DataCRC32C == 9 {
			ids += r.ID
		}
	}
	if ids != "ab" {
		t.Errorf("the file has the events %q, want ab:\n%s", ids, data)
	}
}

func TestRecordsFileThatCannotBeWritten(t *testing.T) {
	l := newLedger(10)
	if err := l.open(filepath.Join(t.TempDir(), "missing", "records")); err == nil {
		t.Error("it was opened")
	}
	if err := l.open(filepath.Join(t.TempDir(), "records")); err != nil {
		t.Fatal(err)
	}
	l.file.Close()
	if err := l.add([]Record{{ID: "a"}}); err == nil || l.stats(false).Received != 0 {
		t.Errorf("an event that was not written is taken: %v", err)
	}
}
