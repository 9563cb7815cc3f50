package s3mem_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/waybillhq/waybill/internal/doctor"
	"github.com/waybillhq/waybill/internal/s3mem"
	"github.com/waybillhq/waybill/sinks"
)

// The tests of package sinks and of `waybill bench s3` run on this server too; here is what they do not ask.

const key = "tests"

func mustServe(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(s3mem.New(key, key))
	t.Cleanup(server.Close)
	return server.URL
}

func mustClient(t *testing.T, endpoint string, options ...func(*s3.Options)) *s3.Client {
	t.Helper()
	config := sinks.DefaultS3Config()
	config.Endpoint, config.PathStyle, config.AccessKey, config.SecretKey = endpoint, true, key, key
	client, err := sinks.NewS3Client(t.Context(), config, options...)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// mustBucket returns a client of a server with a bucket b.
func mustBucket(t *testing.T) *s3.Client {
	t.Helper()
	client := mustClient(t, mustServe(t))
	if _, err := client.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: aws.String("b")}); err != nil {
		t.Fatal(err)
	}
	return client
}

func put(t *testing.T, client *s3.Client, name, data string, change ...func(*s3.PutObjectInput)) error {
	in := &s3.PutObjectInput{Bucket: aws.String("b"), Key: aws.String(name), Body: strings.NewReader(data)}
	for _, c := range change {
		c(in)
	}
	_, err := client.PutObject(t.Context(), in)
	return err
}

func mustPut(t *testing.T, client *s3.Client, name, data string) {
	t.Helper()
	if err := put(t, client, name, data); err != nil {
		t.Fatal(err)
	}
}

// wantCode fails unless an error is S3's, with a code and a status.
func wantCode(t *testing.T, err error, code string, status int) {
	t.Helper()
	var api smithy.APIError
	var response *awshttp.ResponseError
	if !errors.As(err, &api) || api.ErrorCode() != code || !errors.As(err, &response) || response.HTTPStatusCode() != status {
		t.Errorf("%v; want %s, status %d", err, code, status)
	}
}

// Everything that `waybill doctor` looks at is as it should be.
func TestDoctorFindsNothing(t *testing.T) {
	client := mustBucket(t)
	config := sinks.DefaultArchiveConfig()
	config.Bucket, config.Log = "b", slog.New(slog.DiscardHandler)
	archive, err := sinks.NewArchive(client, config)
	if err != nil {
		t.Fatal(err)
	}
	found := doctor.Examine(t.Context(), doctor.Config{S3: client, Bucket: "b", Prefix: config.Prefix, Probe: archive.Probe})
	var checks []string
	for _, f := range found {
		checks = append(checks, f.Check)
		if f.Level == doctor.Fail || f.Level == doctor.Warn && f.Check != "versioning" { // a real bucket may have none, too
			t.Errorf("%+v", f)
		}
	}
	for _, want := range []string{"reachable", "conditional writes", "lifecycle", "versioning"} {
		if !slices.Contains(checks, want) {
			t.Errorf("%s was not looked at: %q", want, checks)
		}
	}
}

// Of many who write a key at once one succeeds.
func TestOneOfManyConditionalWritesSucceeds(t *testing.T) {
	client := mustBucket(t)
	var won atomic.Int64
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			err := put(t, client, "k", fmt.Sprint(i), func(in *s3.PutObjectInput) { in.IfNoneMatch = aws.String("*") })
			if err == nil {
				won.Add(1)
				return
			}
			wantCode(t, err, "PreconditionFailed", http.StatusPreconditionFailed)
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d writes succeeded", won.Load())
	}
}

func TestRanges(t *testing.T) {
	client := mustBucket(t)
	mustPut(t, client, "k", "0123456789")
	mustPut(t, client, "empty", "")
	for asked, want := range map[string]string{
		"": "0123456789", "bytes=2-4": "234", "bytes=7-": "789", "bytes=-3": "789", "bytes=-100": "0123456789", "bytes=8-100": "89",
	} {
		in := &s3.GetObjectInput{Bucket: aws.String("b"), Key: aws.String("k")}
		if asked != "" {
			in.Range = aws.String(asked)
		}
		out, err := client.GetObject(t.Context(), in)
		if err != nil {
			t.Errorf("%s: %v", asked, err)
			continue
		}
		data, err := io.ReadAll(out.Body)
		_ = out.Body.Close()
		if err != nil || string(data) != want || aws.ToInt64(out.ContentLength) != int64(len(want)) ||
			(asked != "") != strings.HasSuffix(aws.ToString(out.ContentRange), "/10") {
			t.Errorf("%s: %q, %v, %s", asked, data, err, aws.ToString(out.ContentRange))
		}
	}
	for name, asked := range map[string]string{"k": "bytes=10-", "empty": "bytes=-5"} {
		_, err := client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("b"), Key: aws.String(name), Range: aws.String(asked)})
		wantCode(t, err, "InvalidRange", http.StatusRequestedRangeNotSatisfiable)
	}
	head, err := client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: aws.String("b"), Key: aws.String("k")})
	if err != nil || aws.ToInt64(head.ContentLength) != 10 || time.Since(aws.ToTime(head.LastModified)) > time.Minute || aws.ToString(head.ETag) != `"781e5e245d69b566979b86e28d23f2c7"` {
		t.Errorf("%+v, %v", head, err)
	}
}

// A listing is in the order of bytes, in pages, with what follows a delimiter left out.
func TestList(t *testing.T) {
	client := mustBucket(t)
	for _, name := range []string{"b/2", "a/1", "a/10", "a/2", "a", "b/1/x", "c", "é"} {
		mustPut(t, client, name, "x")
	}
	for _, c := range []struct {
		prefix, delimiter, after, want string
	}{
		{"", "", "", "a a/1 a/10 a/2 b/1/x b/2 c é"},
		{"", "/", "", "a a/* b/* c é"},
		{"a/", "", "", "a/1 a/10 a/2"},
		{"a/", "", "a/1", "a/10 a/2"},
		{"a/", "", "a/100", "a/2"},
		{"b/", "/", "", "b/1/* b/2"},
		{"", "/", "a/1", "a/* b/* c é"},
		{"", "", "zz", "é"},
		{"d", "", "", ""},
	} {
		for most := int32(1); most <= 10; most += 3 {
			in := &s3.ListObjectsV2Input{Bucket: aws.String("b"), Prefix: aws.String(c.prefix), Delimiter: aws.String(c.delimiter), MaxKeys: aws.Int32(most)}
			if c.after != "" {
				in.StartAfter = aws.String(c.after)
			}
			var got []string
			pages := s3.NewListObjectsV2Paginator(client, in)
			for pages.HasMorePages() {
				page, err := pages.NextPage(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				var keys []string
				for _, o := range page.Contents {
					keys = append(keys, aws.ToString(o.Key))
				}
				for _, p := range page.CommonPrefixes {
					keys = append(keys, aws.ToString(p.Prefix)+"*")
				}
				if n := len(keys); n > int(most) || n != int(aws.ToInt32(page.KeyCount)) {
					t.Errorf("a page of %d keys, said to be %d; at most %d were asked for", n, aws.ToInt32(page.KeyCount), most)
				}
				slices.Sort(keys)
				if got = append(got, keys...); len(got) > 20 {
					t.Fatalf("%+v, %d a page: no end to %q", c, most, got)
				}
			}
			if text := strings.Join(got, " "); text != c.want {
				t.Errorf("%+v, %d a page: %q", c, most, text)
			}
		}
	}
}

// What arrives damaged is refused, and a checksum goes back out with the whole object.
func TestChecksums(t *testing.T) {
	endpoint := mustServe(t)
	client := mustClient(t, endpoint)
	if _, err := client.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: aws.String("b")}); err != nil {
		t.Fatal(err)
	}
	for _, algorithm := range []types.ChecksumAlgorithm{
		types.ChecksumAlgorithmCrc32, types.ChecksumAlgorithmCrc32c, types.ChecksumAlgorithmCrc64nvme, types.ChecksumAlgorithmSha1, types.ChecksumAlgorithmSha256,
	} {
		name := string(algorithm)
		err := put(t, client, name, "data", func(in *s3.PutObjectInput) { in.ChecksumAlgorithm = algorithm })
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		out, err := client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("b"), Key: aws.String(name), ChecksumMode: types.ChecksumModeEnabled})
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(out.Body)
		_ = out.Body.Close()
		sums := []*string{out.ChecksumCRC32, out.ChecksumCRC32C, out.ChecksumCRC64NVME, out.ChecksumSHA1, out.ChecksumSHA256}
		if err != nil || string(data) != "data" || !slices.ContainsFunc(sums, func(s *string) bool { return s != nil }) {
			t.Errorf("%s: %q, %v, no checksum among %v", name, data, err, sums)
		}
	}
	damaged := mustClient(t, endpoint, func(o *s3.Options) { o.HTTPClient = damaging{} })
	wantCode(t, put(t, damaged, "damaged", "data"), "XAmzContentSHA256Mismatch", http.StatusBadRequest)
	wrong := func(in *s3.PutObjectInput) { in.ChecksumCRC32 = aws.String("AAAAAA==") }
	wantCode(t, put(t, client, "damaged", "data", wrong), "BadDigest", http.StatusBadRequest)
	if _, err := client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: aws.String("b"), Key: aws.String("damaged")}); err == nil {
		t.Error("what was refused is there")
	}
}

// damaging changes the data on their way.
type damaging struct{}

func (damaging) Do(r *http.Request) (*http.Response, error) {
	r.Body = io.NopCloser(bytes.NewReader([]byte("dada")))
	return http.DefaultTransport.RoundTrip(r)
}

// A client with other keys, or with none, gets nothing.
func TestWrongKeys(t *testing.T) {
	client := mustBucket(t)
	endpoint := aws.ToString(client.Options().BaseEndpoint)
	for _, c := range []struct {
		access, secret, region, code string
		status                       int
	}{
		{"other", key, "us-east-1", "InvalidAccessKeyId", http.StatusForbidden},
		{key, "other", "us-east-1", "SignatureDoesNotMatch", http.StatusForbidden},
		{key, key, "eu-west-1", "AuthorizationHeaderMalformed", http.StatusBadRequest},
	} {
		config := sinks.DefaultS3Config()
		config.Endpoint, config.PathStyle, config.AccessKey, config.SecretKey, config.Region = endpoint, true, c.access, c.secret, c.region
		other, err := sinks.NewS3Client(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		wantCode(t, put(t, other, "k", "x"), c.code, c.status)
	}
	answer, err := http.Get(endpoint + "/b/k")
	if err != nil {
		t.Fatal(err)
	}
	_ = answer.Body.Close()
	if answer.StatusCode != http.StatusForbidden {
		t.Errorf("without a signature: %s", answer.Status)
	}
}

// What the server does not know it says so of, and what is not there is not found.
func TestRefusals(t *testing.T) {
	client := mustBucket(t)
	mustPut(t, client, "k", "x")
	_, err := client.GetObjectTagging(t.Context(), &s3.GetObjectTaggingInput{Bucket: aws.String("b"), Key: aws.String("k")})
	wantCode(t, err, "NotImplemented", http.StatusNotImplemented)
	_, err = client.CopyObject(t.Context(), &s3.CopyObjectInput{Bucket: aws.String("b"), Key: aws.String("l"), CopySource: aws.String("b/k")})
	wantCode(t, err, "NotImplemented", http.StatusNotImplemented)
	_, err = client.PutBucketVersioning(t.Context(), &s3.PutBucketVersioningInput{Bucket: aws.String("b"), VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusEnabled}})
	wantCode(t, err, "NotImplemented", http.StatusNotImplemented)
	wantCode(t, put(t, client, "k", "y", func(in *s3.PutObjectInput) { in.IfMatch = aws.String("e") }), "NotImplemented", http.StatusNotImplemented)
	wantCode(t, put(t, client, "k", "y", func(in *s3.PutObjectInput) { in.Metadata = map[string]string{"a": "b"} }), "NotImplemented", http.StatusNotImplemented)
	newer := mustClient(t, aws.ToString(client.Options().BaseEndpoint), func(o *s3.Options) {
		o.APIOptions = append(o.APIOptions, smithyhttp.SetHeaderValue("X-Amz-Checksum-Sha512", "eA=="))
	})
	wantCode(t, put(t, newer, "k", "y"), "NotImplemented", http.StatusNotImplemented)
	_, err = client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("b"), Key: aws.String("none")})
	wantCode(t, err, "NoSuchKey", http.StatusNotFound)
	_, err = client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("none"), Key: aws.String("k")})
	wantCode(t, err, "NoSuchBucket", http.StatusNotFound)
	_, err = client.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: aws.String("b")})
	wantCode(t, err, "BucketAlreadyOwnedByYou", http.StatusConflict)
	list, err := client.ListBuckets(t.Context(), &s3.ListBucketsInput{})
	if err != nil || len(list.Buckets) != 1 || aws.ToString(list.Buckets[0].Name) != "b" {
		t.Errorf("%+v, %v", list, err)
	}
}
