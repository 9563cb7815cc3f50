package process

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Each check lets what works pass, and says of the rest what is wanted, without what may be a secret.
func TestChecks(t *testing.T) {
	file := filepath.Join(t.TempDir(), "creds")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	checks := Checks()
	for name, c := range map[string]struct {
		good []string
		bad  map[string]string
	}{
		"address": {[]string{":0", "127.0.0.1:8080", "[::1]:80"}, map[string]string{
			"here": `"here"; want host:port`, "127.0.0.1:99999": "127.0.0.1:99999",
		}},
		"file":         {[]string{file}, map[string]string{file + "x": "no such file"}},
		"id":           {[]string{"ingest-1"}, map[string]string{"a b": "want up to"}},
		"lane":         {[]string{"0", "255"}, map[string]string{"-1": "-1; want 0 to 255", "256": "256; want 0 to 255"}},
		"lanes":        {[]string{"1", "256"}, map[string]string{"0": "0; want 1 to 256", "257": "257; want 1 to 256"}},
		"positive":     {[]string{"1", "10", "500ms", "1h0m0s", "0.5"}, map[string]string{"0": "0; want more than 0", "0s": "0s; want more", "-1s": "-1s; want more"}},
		"not-negative": {[]string{"0", "0s", "7", "2m0s"}, map[string]string{"-7": "-7; want 0 or more", "-1s": "-1s; want 0 or more"}},
		"nats": {[]string{"nats://127.0.0.1:4222", "here", "tls://me:pw@a,tls://b:1", "token@here"}, map[string]string{
			"": "is empty", "http://a": "http://", "nats://me:geheim/x@a": "cannot be parsed", "nats://": "cannot be parsed", "nats://a,nats://me:geheim%zz@b": "cannot be parsed",
		}},
		"postgres": {[]string{"postgres://me:pw@h:1/d", "postgresql://h", "host=h user=u"}, map[string]string{
			"": "is empty", "geheim": "is no URL, but a text of 6 characters", "postgres://me:geheim@h:bad/d": "cannot be parsed",
			"postgres://h/d?sslmode=verify-full&sslrootcert=/nowhere": "/nowhere",
		}},
	} {
		check := checks[name]
		for _, value := range c.good {
			if err := check(value); err != nil {
				t.Errorf("%s %q: %v", name, value, err)
			}
		}
		for value, want := range c.bad {
			if err := check(value); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "geheim") {
				t.Errorf("%s %q: %v, want %q", name, value, err, want)
			}
		}
		delete(checks, name)
	}
	if len(checks) > 0 {
		t.Errorf("not tried: %v", checks)
	}
}
