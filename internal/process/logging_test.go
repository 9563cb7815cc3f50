package process

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// The form and the level of the log are settings, and each line says which process it is of.
func TestLogFormAndLevel(t *testing.T) {
	var log bytes.Buffer
	var config Janitor
	mustParse(t, &config, "--database-url=postgres://h/d")
	config.logger(&log, "janitor").Info("a line", "n", 1)
	var line struct {
		Level, Msg, Process string
		N                   int
	}
	if err := json.Unmarshal(log.Bytes(), &line); err != nil || line.Msg != "a line" || line.Process != "janitor" || line.N != 1 || line.Level != "INFO" {
		t.Errorf("%v: %s", err, &log)
	}
	log.Reset()
	mustParse(t, &config, "--database-url=postgres://h/d", "--log-format=text", "--log-level=warn")
	logger := config.logger(&log, "janitor")
	logger.Info("less")
	logger.Warn("more")
	if text := log.String(); !strings.Contains(text, `level=WARN msg=more process=janitor`) || strings.Contains(text, "less") {
		t.Errorf("the log is %s", text)
	}
}
