package sinks

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
)

// probeCleanup bounds the removal of the probe's objects, which also follows a probe that
// was cut short.
const probeCleanup = 5 * time.Second

// ErrUnfit means that a destination answers and does not do what its sink depends on: no
// retry mends that.
var ErrUnfit = errors.New("unfit")

// unfit marks an error as one that no retry mends.
type unfit struct{ error }

func (u unfit) Is(target error) bool { return target == ErrUnfit }
func (u unfit) Unwrap() error        { return u.error }

// Probe checks that the server keeps what the log is built on: a conditional PUT of a key
// that exists fails with 412, LIST is in order and its StartAfter is exclusive, and the
// end of an object can be read alone. Several servers ignore the condition without a
// word, and events would be lost there. It writes below <prefix>/_probe/ and cleans up.
// The error is ErrUnfit where the server, or the configuration, has to change.
func (a *Archive) Probe(ctx context.Context) error {
	if err := a.probe(ctx); err != nil {
		return fmt.Errorf("archive: the S3 server is not usable: %w", err)
	}
	return nil
}

func (a *Archive) probe(ctx context.Context) error {
	base := a.objects.prefix + "_probe/" + rand.Text()
	first, second := base+"-1", base+"-2"
	// The later key first, so that a LIST in order of time would show.
	err := a.probePut(ctx, second)
	if dial := (*net.OpError)(nil); errors.As(err, &dial) && dial.Op == "dial" || unsigned(err) {
		return err // nothing is there to be removed, and nobody to ask
	}
	defer a.removeProbe(ctx, first, second)
	if errorCode(err) == "NoSuchBucket" {
		if err = a.createBucket(ctx, err); err == nil {
			err = a.probePut(ctx, second)
		}
	}
	if err != nil {
		return err
	}
	if err := a.objects.put(ctx, first, []byte("first")); err != nil {
		return err
	}
	if err := a.probeCondition(ctx, first); err != nil {
		return err
	}
	if err := a.probeList(ctx, base, first, second); err != nil {
		return err
	}
	return a.probeRange(ctx, first)
}

func (a *Archive) probePut(ctx context.Context, key string) error {
	err := a.objects.put(ctx, key, []byte("second"))
	if status := httpStatus(err); status == http.StatusNotImplemented || status == http.StatusBadRequest {
		return unfit{fmt.Errorf("it does not take a conditional PUT (If-None-Match), which the archive depends on: %w", err)}
	}
	return err
}

func (a *Archive) createBucket(ctx context.Context, missing error) error {
	bucket := a.cfg.Bucket
	if !a.cfg.CreateBucket {
		return unfit{fmt.Errorf("the bucket %s does not exist; create it, or correct ArchiveConfig.Bucket (WAYBILL_S3_BUCKET): %w", bucket, missing)}
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Timeout)
	defer cancel()
	in := &s3.CreateBucketInput{Bucket: aws.String(bucket)}
	if region := a.objects.client.Options().Region; region != "us-east-1" {
		in.CreateBucketConfiguration = &types.CreateBucketConfiguration{
			LocationConstraint: types.BucketLocationConstraint(region),
		}
	}
	_, err := a.objects.client.CreateBucket(ctx, in)
	if code := errorCode(err); code == "BucketAlreadyOwnedByYou" || code == "BucketAlreadyExists" {
		return nil // another process did
	}
	if err != nil {
		return fmt.Errorf("create the bucket %s: %w", bucket, err)
	}
	return nil
}

func (a *Archive) probeCondition(ctx context.Context, key string) error {
	err := a.objects.put(ctx, key, []byte("other"))
	switch {
	case errors.Is(err, errObjectExists):
		return nil
	case err == nil:
		return unfit{errors.New("it ignores If-None-Match: a second conditional PUT of one key succeeded, so that two " +
			"writers would overwrite each other's events; use a server that implements conditional writes")}
	default:
		return fmt.Errorf("a second conditional PUT of one key was not answered with 412: %w", err)
	}
}

func (a *Archive) probeList(ctx context.Context, base, first, second string) error {
	all, err := a.probeKeys(ctx, base, "")
	if err != nil {
		return err
	}
	after, err := a.probeKeys(ctx, base, first)
	if err != nil {
		return err
	}
	if !slices.Equal(all, []string{first, second}) || !slices.Equal(after, []string{second}) {
		return unfit{fmt.Errorf("LIST does not show what was just written, in order, after the key in StartAfter "+
			"(got %d and %d objects, want 2 and 1); use a general-purpose bucket on a server that implements it",
			len(all), len(after))}
	}
	return nil
}

func (a *Archive) probeKeys(ctx context.Context, prefix, after string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Timeout)
	defer cancel()
	in := &s3.ListObjectsV2Input{Bucket: aws.String(a.cfg.Bucket), Prefix: aws.String(prefix)}
	if after != "" {
		in.StartAfter = aws.String(after)
	}
	out, err := a.objects.client.ListObjectsV2(ctx, in)
	if err != nil {
		return nil, fmt.Errorf("list s3://%s/%s: %w", a.cfg.Bucket, prefix, err)
	}
	keys := make([]string, 0, len(out.Contents))
	for _, object := range out.Contents {
		keys = append(keys, aws.ToString(object.Key))
	}
	return keys, nil
}

func (a *Archive) probeRange(ctx context.Context, key string) error {
	tail, size, err := a.objects.get(ctx, key, "bytes=-2")
	if err != nil {
		return err
	}
	if string(tail) != "st" || size != int64(len("first")) {
		return unfit{fmt.Errorf("a GET of an object's last 2 bytes returned %d bytes of %d; use a server that implements "+
			"ranges", len(tail), size)}
	}
	return nil
}

// unsigned reports that no request was made, since there were no keys to sign it with. The SDK has no type for that.
func unsigned(err error) bool {
	return err != nil && strings.Contains(err.Error(), "get credentials: ")
}

// removeProbe leaves the objects where they are if it may not delete: they are small.
func (a *Archive) removeProbe(ctx context.Context, keys ...string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeCleanup)
	defer cancel()
	for _, key := range keys {
		_, err := a.objects.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: aws.String(a.cfg.Bucket), Key: aws.String(key)})
		if err != nil && errorCode(err) != "NoSuchBucket" {
			a.log.WarnContext(ctx, "an object of the start-up probe was not removed",
				slog.String("key", key), slog.String("error", strings.TrimSpace(err.Error())))
		}
	}
}

// errorCode is the S3 error code behind an error; empty where there is none.
func errorCode(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}
