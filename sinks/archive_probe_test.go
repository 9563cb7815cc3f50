package sinks

import (
	"bytes"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/smithy-go/logging"
)

// mustProxy stands before the S3 server and changes requests, which it signs anew.
func mustProxy(t *testing.T, change func(*http.Request)) string {
	t.Helper()
	target, err := url.Parse(testS3.Endpoint)
	mustNil(t, err)
	signer := v4.NewSigner()
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Host = target.Host
		for name := range r.Out.Header {
			switch name {
			case "If-None-Match", "Range", "Content-Type", "X-Amz-Content-Sha256", "Content-Length":
			default:
				r.Out.Header.Del(name)
			}
		}
		change(r.Out)
		err := signer.SignHTTP(r.Out.Context(), aws.Credentials{AccessKeyID: testS3.AccessKey, SecretAccessKey: testS3.SecretKey},
			r.Out, r.Out.Header.Get("X-Amz-Content-Sha256"), "s3", testS3.Region, time.Now())
		if err != nil {
			t.Error(err)
		}
	}}
	server := httptest.NewServer(proxy)
	t.Cleanup(server.Close)
	return server.URL
}

func TestArchiveProbe(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*http.Request)
		want   string
		unfit  bool
	}{
		"a good server":         {func(*http.Request) {}, "", false},
		"no conditions":         {func(r *http.Request) { r.Header.Del("If-None-Match") }, "ignores If-None-Match", true},
		"conditions refused":    {func(r *http.Request) { refuse(r, "PUT", "If-None-Match", "bogus") }, "conditional PUT", true},
		"no StartAfter":         {func(r *http.Request) { dropQuery(r, "start-after") }, "StartAfter", true},
		"LIST of nothing":       {func(r *http.Request) { setQuery(r, "prefix", "nowhere") }, "LIST", true},
		"no ranges":             {func(r *http.Request) { r.Header.Del("Range") }, "implements ranges", true},
		"no LIST":               {func(r *http.Request) { forbid(r, r.URL.Query().Has("list-type")) }, "list s3://", false},
		"no GET":                {func(r *http.Request) { forbid(r, r.Header.Get("Range") != "") }, "get s3://", false},
		"no PUT":                {func(r *http.Request) { forbid(r, r.Method == http.MethodPut) }, "does not exist", true},
		"no DELETE is no error": {func(r *http.Request) { forbid(r, r.Method == http.MethodDelete) }, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			k := newArchiveKit(t)
			client, _ := k.client(mustProxy(t, tc.change), 1)
			err := k.archiveWith(client).Probe(t.Context())
			if errors.Is(err, ErrUnfit) != tc.unfit {
				t.Errorf("unfit is %t: %v", !tc.unfit, err)
			}
			if tc.want != "" {
				wantError(t, err, "archive: the S3 server is not usable", tc.want)
			} else {
				mustNil(t, err)
			}
		})
	}
}

func dropQuery(r *http.Request, name string) {
	q := r.URL.Query()
	q.Del(name)
	r.URL.RawQuery = q.Encode()
}

func setQuery(r *http.Request, name, value string) {
	q := r.URL.Query()
	if q.Has(name) {
		q.Set(name, value)
		r.URL.RawQuery = q.Encode()
	}
}

// refuse gives a header a value that no server takes.
func refuse(r *http.Request, method, header, value string) {
	if r.Method == method && r.Header.Get(header) != "" {
		r.Header.Set(header, value)
	}
}

// forbid makes a request one that may not be made: its bucket is not there.
func forbid(r *http.Request, condition bool) {
	if condition {
		r.URL.Path = "/not-a-bucket-of-anybody" + r.URL.Path
	}
}

func TestArchiveProbeCleansUp(t *testing.T) {
	k := newArchiveKit(t)
	a, _ := k.archive()
	mustNil(t, a.Probe(t.Context()))
	keys, err := a.probeKeys(t.Context(), "", "")
	if err != nil || len(keys) > 0 {
		t.Errorf("left behind: %q, %v", keys, err)
	}
}

// Where there are no keys nothing was written, and so nothing is to be removed; and the SDK keeps to itself what it
// looked for.
func TestArchiveProbeWithoutKeys(t *testing.T) {
	for _, variable := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"} {
		t.Setenv(variable, "")
	}
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
	t.Setenv("AWS_CONFIG_FILE", "/nowhere")
	given := DefaultS3Config()
	given.Endpoint = testS3.Endpoint
	client, err := NewS3Client(t.Context(), given)
	mustNil(t, err)
	if _, silent := client.Options().Logger.(logging.Nop); !silent {
		t.Errorf("the SDK logs by itself, to %T", client.Options().Logger)
	}
	var logged bytes.Buffer
	config := DefaultArchiveConfig()
	config.Bucket, config.Log = "b", slog.New(slog.NewTextHandler(&logged, nil))
	a, err := NewArchive(client, config)
	mustNil(t, err)
	if err := a.Probe(t.Context()); !unsigned(err) || logged.Len() > 0 {
		t.Errorf("%v, and it logs %q", err, logged.String())
	}
}

func TestArchiveProbeMissingBucket(t *testing.T) {
	k := newArchiveKit(t)
	missing := func(c *ArchiveConfig) { c.Bucket = k.bucket + "-missing" }
	a, _ := k.archive(missing)
	wantError(t, a.Probe(t.Context()), "does not exist; create it", k.bucket+"-missing")
	stopped, f := k.archive()
	f.set(func(*http.Request) fault { return loseBefore })
	if err := stopped.Probe(t.Context()); err == nil || errors.Is(err, ErrUnfit) {
		t.Errorf("without a server: %v", err)
	}
	create, _ := k.archive(missing, func(c *ArchiveConfig) { c.CreateBucket = true })
	mustNil(t, create.Probe(t.Context()))
	mustNil(t, create.Probe(t.Context()))
	mustNil(t, a.Probe(t.Context()))
	mustArchive(t, a, 0, batchOf(1, 1))
}
