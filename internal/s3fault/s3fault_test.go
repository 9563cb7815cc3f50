package s3fault

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/smithy-go"

	"github.com/waybillhq/waybill/sinks"
)

// mustFail lists the lanes of a bucket where that cannot work.
func mustFail(t *testing.T, change func(*sinks.S3Config)) error {
	t.Helper()
	config := sinks.DefaultS3Config()
	config.AccessKey, config.SecretKey, config.PathStyle = "key", "geheim", true
	change(&config)
	client, err := sinks.NewS3Client(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	reader, err := sinks.NewArchiveReader(client, "b", "", 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = reader.Lanes(t.Context()); err == nil {
		t.Fatal("it lists")
	}
	return err
}

// Each way in which a server cannot be used is told apart, and the setting that is wrong is named.
func TestExplain(t *testing.T) {
	for _, variable := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"} {
		t.Setenv(variable, "")
	}
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
	t.Setenv("AWS_CONFIG_FILE", "/nowhere")
	status, body := http.StatusOK, ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		_, _ = fmt.Fprint(w, body)
	}))
	t.Cleanup(server.Close)
	answers := func(c *sinks.S3Config) { c.Endpoint = server.URL }
	for name, c := range map[string]struct {
		change func(*sinks.S3Config)
		status int
		code   string
		want   []string
	}{
		"no keys":    {func(c *sinks.S3Config) { answers(c); c.AccessKey, c.SecretKey = "", "" }, 200, "", []string{"no keys are given", "give KEYS"}},
		"no server":  {func(c *sinks.S3Config) { c.Endpoint = "http://127.0.0.1:1" }, 200, "", []string{"connection refused; start the server, or correct ENDPOINT"}},
		"no name":    {func(c *sinks.S3Config) { c.Endpoint = "http://nosuch.invalid" }, 200, "", []string{"nosuch.invalid: ", "correct ENDPOINT"}},
		"no bucket":  {answers, 404, "NoSuchBucket", []string{"it does not exist; create it, or correct BUCKET"}},
		"wrong keys": {answers, 403, "InvalidAccessKeyId", []string{"access is denied: InvalidAccessKeyId", "correct KEYS"}},
		"region":     {answers, 301, "PermanentRedirect", []string{"another region", "set REGION"}},
		"no S3":      {answers, 400, "BadRequest", []string{"status 400, BadRequest", "ENDPOINT and STYLE"}},
	} {
		status, body = c.status, "<Error><Code>"+c.code+"</Code></Error>"
		before := mustFail(t, c.change)
		err := Explain(before, Where("b", "", "x"), Settings{"ENDPOINT", "REGION", "BUCKET", "STYLE", "KEYS"})
		for _, text := range append(c.want, "the bucket b at AWS, x: ") {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %q does not say %q", name, err, text)
			}
		}
		if strings.Contains(err.Error(), "operation error") || strings.Contains(err.Error(), "geheim") || !errors.Is(err, before) {
			t.Errorf("%s: %v", name, err)
		}
		if again := fmt.Errorf("x: %w", err); Explain(again, "y", Default()) != again {
			t.Errorf("%s: it is explained twice", name)
		}
	}
	unfit := fmt.Errorf("%w: %w", sinks.ErrUnfit, &smithy.OperationError{Err: errors.New("x")})
	for _, other := range []error{nil, errors.New("other"), unfit} {
		if Explain(other, "y", Default()) != other {
			t.Errorf("%v: it is explained", other)
		}
	}
}
