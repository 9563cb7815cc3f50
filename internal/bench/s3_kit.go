package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"

	"github.com/waybillhq/waybill/internal/devstack"
	"github.com/waybillhq/waybill/internal/process"
)

const (
	// s3Bucket is used where none is named, and made where it is missing.
	s3Bucket = "waybill-bench"
	// s3RequestLimit bounds one request, the client's own retries included.
	s3RequestLimit = 30 * time.Second
	// s3CleanupLimit bounds the removal of what a run has written to somebody's server.
	s3CleanupLimit = time.Minute
)

// s3Kit is an S3 server and a prefix of a run's own.
type s3Kit struct {
	bench    *Bench
	settings process.S3
	plan     s3Plan
	prefix   string // ends with a slash
	client   *s3.Client
	meter    *s3Meter
	own      *devstack.S3 // nil: a server that was there before
	dir      string       // of the own one
}

// openS3 connects to the server of the settings, or starts one.
func openS3(ctx context.Context, b *Bench, plan s3Plan) (k *s3Kit, err error) {
	k = &s3Kit{bench: b, settings: b.config.S3, plan: plan}
	defer func() {
		if err != nil {
			err = errors.Join(err, k.stop())
		}
	}()
	if k.settings.S3Endpoint == "" && k.settings.S3Bucket == "" {
		if err := k.start(ctx); err != nil {
			return nil, err
		}
	}
	if k.settings.S3Bucket == "" {
		k.settings.S3Bucket = s3Bucket
	}
	k.prefix = strings.TrimPrefix(fmt.Sprintf("%s/bench-%d/", k.settings.S3Prefix, time.Now().UnixNano()), "/")
	if k.client, k.meter, err = k.newClient(ctx); err != nil {
		return nil, err
	}
	return k, k.createBucket(ctx)
}

// start starts a server of the kind that waybill dev has.
func (k *s3Kit) start(ctx context.Context) (err error) {
	if k.dir, err = os.MkdirTemp("", "waybill-bench-s3-"); err != nil {
		return fmt.Errorf("scratch directory: %w", err)
	}
	k.bench.live("starting an S3 server")
	if k.own, err = devstack.StartS3(ctx, devstack.S3Options{Dir: k.dir}); err != nil {
		return err
	}
	k.settings.S3Endpoint, k.settings.S3Region = k.own.Endpoint, k.own.Region
	k.settings.S3AccessKey, k.settings.S3SecretKey, k.settings.S3PathStyle = k.own.AccessKey, k.own.SecretKey, true
	return nil
}

// newClient makes a client, with connections of its own, and what counts its requests.
func (k *s3Kit) newClient(ctx context.Context, options ...func(*s3.Options)) (*s3.Client, *s3Meter, error) {
	meter := &s3Meter{}
	client, err := k.settings.Client(ctx, append(options, func(o *s3.Options) {
		meter.next = o.HTTPClient
		o.HTTPClient = meter
	})...)
	return client, meter, err
}

// withoutRetries is a client whose requests are made once.
func withoutRetries(o *s3.Options) { o.Retryer = aws.NopRetryer{} }

func (k *s3Kit) createBucket(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s3RequestLimit)
	defer cancel()
	_, err := k.client.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &k.settings.S3Bucket})
	if err == nil {
		return nil
	}
	in := &s3.CreateBucketInput{Bucket: &k.settings.S3Bucket}
	if region := k.settings.S3Region; region != "us-east-1" {
		in.CreateBucketConfiguration = &types.CreateBucketConfiguration{LocationConstraint: types.BucketLocationConstraint(region)}
	}
	if _, err := k.client.CreateBucket(ctx, in); err != nil && errorCode(err) != "BucketAlreadyOwnedByYou" {
		return fmt.Errorf("S3 server %s: bucket %s is not there and cannot be made; name one with --s3-bucket: %w", k.where(), k.settings.S3Bucket, err)
	}
	return nil
}

func (k *s3Kit) where() string {
	if k.settings.S3Endpoint == "" {
		return "AWS " + k.settings.S3Region
	}
	return k.settings.S3Endpoint
}

// close removes what was written and stops an own server.
func (k *s3Kit) close(ctx context.Context) error {
	if k.own == nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s3CleanupLimit)
		defer cancel()
		k.bench.live("removing what was written")
		if err := k.remove(ctx); err != nil {
			k.bench.warn("objects are left below s3://%s/%s: %v", k.settings.S3Bucket, k.prefix, err)
		}
	}
	return k.stop()
}

func (k *s3Kit) stop() error {
	var errs []error
	if k.own != nil {
		errs = append(errs, k.own.Stop())
	}
	if k.dir != "" {
		errs = append(errs, os.RemoveAll(k.dir))
	}
	return errors.Join(errs...)
}

// remove deletes every object below the prefix, a page at a time.
func (k *s3Kit) remove(ctx context.Context) error {
	for {
		keys, _, err := k.listPage(ctx, k.client, "", "")
		if err != nil || len(keys) == 0 {
			return err
		}
		var objects []types.ObjectIdentifier
		for _, key := range keys {
			objects = append(objects, types.ObjectIdentifier{Key: aws.String(k.prefix + key)})
		}
		out, err := k.client.DeleteObjects(ctx, &s3.DeleteObjectsInput{
			Bucket: &k.settings.S3Bucket, Delete: &types.Delete{Objects: objects, Quiet: aws.Bool(true)},
		})
		if err != nil {
			return err
		}
		if len(out.Errors) > 0 {
			return fmt.Errorf("%s: %s", aws.ToString(out.Errors[0].Code), aws.ToString(out.Errors[0].Message))
		}
	}
}

// put writes an object below the prefix.
func (k *s3Kit) put(ctx context.Context, client *s3.Client, key string, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, s3RequestLimit)
	defer cancel()
	_, err := client.PutObject(ctx, &s3.PutObjectInput{
		Bucket: &k.settings.S3Bucket, Key: aws.String(k.prefix + key), Body: bytes.NewReader(body),
	})
	return err
}

// get reads an object below the prefix.
func (k *s3Kit) get(ctx context.Context, client *s3.Client, key string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, s3RequestLimit)
	defer cancel()
	out, err := client.GetObject(ctx, &s3.GetObjectInput{Bucket: &k.settings.S3Bucket, Key: aws.String(k.prefix + key)})
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Body.Close() }() // read to its end or given up
	return io.ReadAll(out.Body)
}

// list returns the keys of a folder behind another key, without the prefix, and how many requests
// that took.
func (k *s3Kit) list(ctx context.Context, client *s3.Client, folder, after string) (keys []string, requests int, err error) {
	for {
		page, more, err := k.listPage(ctx, client, folder, after)
		requests++
		if err != nil {
			return keys, requests, err
		}
		keys = append(keys, page...)
		if !more || len(page) == 0 {
			return keys, requests, nil
		}
		after = page[len(page)-1]
	}
}

// listPage is one LIST of at most a thousand keys, and whether there are more.
func (k *s3Kit) listPage(ctx context.Context, client *s3.Client, folder, after string) (keys []string, more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, s3RequestLimit)
	defer cancel()
	in := &s3.ListObjectsV2Input{Bucket: &k.settings.S3Bucket, Prefix: aws.String(k.prefix + folder)}
	if after != "" {
		in.StartAfter = aws.String(k.prefix + after)
	}
	out, err := client.ListObjectsV2(ctx, in)
	if err != nil {
		return nil, false, err
	}
	for _, object := range out.Contents {
		keys = append(keys, strings.TrimPrefix(aws.ToString(object.Key), k.prefix))
	}
	return keys, aws.ToBool(out.IsTruncated), nil
}

// errorCode is the S3 error code behind an error; empty where there is none.
func errorCode(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}
