package intake

import (
	"errors"
	"strings"
	"testing"

	"github.com/waybillhq/waybill/pipeline"
)

func TestParseJSON(t *testing.T) {
	ce, err := ParseJSON([]byte(`{"specversion":"1.0","id":"1","source":"/s","type":"t","data":{"a": 1}}`), 1000)
	if err != nil || ce.Id != "1" || string(ce.GetBinaryData()) != `{"a": 1}` {
		t.Errorf("%v, %v", ce, err)
	}
	for raw, want := range map[string]string{
		``:    "not valid JSON",
		`{`:   "not valid JSON",
		`[1]`: "event: is not a JSON object",
		`{"specversion":"1.0","id":"1","source":"/s"}`:                          "type: ",
		`{"specversion":"1.0","id":"1","source":"/s","type":"t","data":"long"}`: "data: ",
	} {
		if _, err := ParseJSON([]byte(raw), 10); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", raw, err, want)
		}
	}
	var fault *pipeline.InvalidEventError
	if _, err := ParseJSON([]byte(`{}`), 1000); !errors.As(err, &fault) {
		t.Errorf("%v is no *pipeline.InvalidEventError", err)
	}
}
