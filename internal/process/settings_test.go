package process

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/waybillhq/waybill/internal/cli"
)

// A setting that cannot work ends a process at once, by its name and with its value, though the
// Postgres that it names does not answer.
func TestWrongSettingsEndAProcessBeforeItWaits(t *testing.T) {
	for _, c := range []struct {
		config cli.Runner
		flag   string
		says   []string
	}{
		{&Ingest{}, "--lanes=0", []string{"lanes: 0", "1 to 256"}},
		{&Ingest{}, "--http-addr=here", []string{"http addr", `"here"`, "host:port"}},
		{&Ingest{}, "--grpc-addr=127.0.0.1:99999", []string{"grpc addr", `"127.0.0.1:99999"`}},
		{&Ingest{}, "--event-ttl=-5s", []string{"event TTL: -5s"}},
		{&Ingest{}, "--queue-events=0", []string{"queue events", "0"}},
		{&Ingest{}, "--backlog-events=-1", []string{"backlog events", "-1"}},
		{&Ingest{}, "--budget-bytes=1", []string{"WAYBILL_BUDGET_BYTES", "is 1"}},
		{&Ingest{}, "--dedupe-attribute=Foo_", []string{"Foo_"}},
		{&Janitor{}, "--lanes=257", []string{"lanes: 257", "1 to 256"}},
		{&Janitor{}, "--queue-bytes=1", []string{"queue bytes: 1", "64 MiB"}},
		{&Janitor{}, "--dead-letter-ttl=-1s", []string{"dead letter TTL", "-1s"}},
		{&Forwarder{}, "--ingress-endpoint=http://here", []string{"WAYBILL_INGRESS_ENDPOINT", `"http://here"`, "WAYBILL_INGRESS_TLS"}},
		{&Forwarder{}, "--s3-endpoint=here", []string{"WAYBILL_S3_ENDPOINT", `"here"`, "https://"}},
	} {
		t.Run(c.flag, func(t *testing.T) {
			args := []string{"--admin-addr=127.0.0.1:0", c.flag}
			if _, forwards := c.config.(*Forwarder); forwards {
				args = append(args, "--s3-bucket=archive")
			} else {
				args = append(args, "--database-url=postgres://waybill@127.0.0.1:1/waybill")
			}
			mustParse(t, c.config, args...)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			err := c.config.Run(ctx)
			if ctx.Err() != nil || err == nil {
				t.Fatalf("it waited instead of ending: %v", err)
			}
			for _, text := range c.says {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("%q does not say %q", err, text)
				}
			}
		})
	}
}

// mustParse sets a process's settings as its command line would.
func mustParse(t *testing.T, config any, args ...string) {
	t.Helper()
	parser, err := cli.NewParser("test", "", config, Defaults())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.Parse(args); err != nil {
		t.Fatal(err)
	}
}
