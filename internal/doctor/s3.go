package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	smithymiddleware "github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/waybillhq/waybill/internal/s3fault"
	"github.com/waybillhq/waybill/sinks"
)

// bucket is a patient behind an S3 server.
type bucket struct {
	patient
	cfg Config
}

func examineS3(ctx context.Context, cfg Config) []Finding {
	if cfg.S3 == nil {
		return nil
	}
	b := &bucket{patient: patient{server: "s3"}, cfg: cfg}
	if b.reachable(ctx) {
		b.probe(ctx)
		b.lifecycle(ctx)
		b.versioning(ctx)
	}
	return b.findings
}

func (b *bucket) reachable(ctx context.Context) bool {
	var date string
	before := time.Now()
	_, err := b.cfg.S3.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: aws.String(b.cfg.Bucket)}, keepHeader("Date", &date))
	after := time.Now()
	if err == nil {
		b.ok("reachable", "bucket %s", b.cfg.Bucket)
	} else {
		why, remedy := s3fault.Fault(err, s3fault.Default())
		b.fail("reachable", cmp.Or(remedy, "see the server's log"), "bucket %s: %s", b.cfg.Bucket, cmp.Or(why, err.Error()))
	}
	if theirs, err := http.ParseTime(date); err == nil {
		b.clock(theirs, before, after, time.Second, 15*time.Minute) // beyond, S3 refuses what is signed
	}
	return err == nil
}

// keepHeader keeps a header of the answer, whatever its status.
func keepHeader(name string, into *string) func(*s3.Options) {
	return func(o *s3.Options) {
		o.APIOptions = append(o.APIOptions, func(stack *smithymiddleware.Stack) error {
			return stack.Deserialize.Add(smithymiddleware.DeserializeMiddlewareFunc("KeepHeader",
				func(ctx context.Context, in smithymiddleware.DeserializeInput, next smithymiddleware.DeserializeHandler) (smithymiddleware.DeserializeOutput, smithymiddleware.Metadata, error) {
					out, metadata, err := next.HandleDeserialize(ctx, in)
					if response, ok := out.RawResponse.(*smithyhttp.Response); ok && response != nil {
						*into = response.Header.Get(name)
					}
					return out, metadata, err
				}), smithymiddleware.After)
		})
	}
}

func (b *bucket) probe(ctx context.Context) {
	switch err := b.cfg.Probe(ctx); {
	case err == nil:
		b.ok("conditional writes", "a second PUT of a key is refused, LIST is in order, ranges can be read")
	case errors.Is(err, sinks.ErrUnfit):
		b.fail("conditional writes", "use another S3 server, or another bucket: a forwarder refuses to start on this one", "%v", err)
	default:
		b.fail("conditional writes", "let the user read, write and list below the prefix "+b.prefix()+" (s3:GetObject, s3:PutObject, s3:ListBucket)", "%v", err)
	}
}

// prefix is below which the archive's keys are.
func (b *bucket) prefix() string {
	if b.cfg.Prefix == "" {
		return ""
	}
	return b.cfg.Prefix + "/"
}

func (b *bucket) lifecycle(ctx context.Context) {
	out, err := b.cfg.S3.GetBucketLifecycleConfiguration(ctx, &s3.GetBucketLifecycleConfigurationInput{Bucket: aws.String(b.cfg.Bucket)})
	if err != nil {
		b.unknown("lifecycle", err, "NoSuchLifecycleConfiguration", "no rule deletes anything", "s3:GetLifecycleConfiguration")
		return
	}
	bad := 0
	for _, rule := range out.Rules {
		if level, what := judgeRule(rule, b.prefix()); level != OK {
			bad++
			remedy := "limit the rule to another prefix, or disable it: the newest object of every lane must stay, since it says where the log ends, and an idle lane would lose it"
			if level == Warn {
				remedy = "exclude the prefix " + b.prefix() + ": forwarders read the newest objects, and must be able to at once"
			}
			b.findings = append(b.findings, Finding{b.server, "lifecycle", level, fmt.Sprintf("rule %q %s", aws.ToString(rule.ID), what), remedy})
		}
	}
	if bad == 0 {
		b.ok("lifecycle", "none of %d rules deletes or moves what the archive wrote", len(out.Rules))
	}
}

// judgeRule says what a rule does to objects below the archive's prefix, which have no tags.
func judgeRule(rule types.LifecycleRule, prefix string) (Level, string) {
	if rule.Status != types.ExpirationStatusEnabled || !covers(rule, prefix) {
		return OK, ""
	}
	if e := rule.Expiration; e != nil && (aws.ToInt32(e.Days) > 0 || e.Date != nil) {
		when := fmt.Sprintf("after %d days", aws.ToInt32(e.Days))
		if e.Date != nil {
			when = "from " + e.Date.UTC().Format(time.DateOnly) + " on"
		}
		return Fail, "deletes objects of the archive " + when
	}
	for _, t := range rule.Transitions {
		if t.StorageClass == types.TransitionStorageClassGlacier || t.StorageClass == types.TransitionStorageClassDeepArchive {
			return Warn, "moves objects of the archive to " + string(t.StorageClass) + ", where they cannot be read at once"
		}
	}
	return OK, ""
}

// covers reports whether a rule may be about an object below the prefix.
func covers(rule types.LifecycleRule, prefix string) bool {
	//lint:ignore SA1019 servers still answer with it
	scope := aws.ToString(rule.Prefix)
	if f := rule.Filter; f != nil {
		scope = aws.ToString(f.Prefix)
		if f.Tag != nil {
			return false
		}
		if f.And != nil {
			scope = aws.ToString(f.And.Prefix)
			if len(f.And.Tags) > 0 {
				return false
			}
		}
	}
	// A rule of a part of the archive counts too.
	return strings.HasPrefix(prefix, scope) || strings.HasPrefix(scope, prefix)
}

func (b *bucket) versioning(ctx context.Context) {
	out, err := b.cfg.S3.GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: aws.String(b.cfg.Bucket)})
	switch {
	case err != nil:
		b.unknown("versioning", err, "", "", "s3:GetBucketVersioning")
	case out.Status == types.BucketVersioningStatusEnabled:
		b.ok("versioning", "it is on: damaged objects can be restored; do not delete any by hand, since a conditional write succeeds over a delete marker")
	default:
		b.ok("versioning", "it is off: what is deleted is gone")
	}
}

// unknown judges a question that was not answered: none means that there is nothing, other codes that the
// server does not know the question or that the user may not ask it.
func (b *bucket) unknown(check string, err error, none, nothing, permission string) {
	var api smithy.APIError
	code := ""
	if errors.As(err, &api) {
		code = api.ErrorCode()
	}
	status := httpStatus(err)
	switch {
	case none != "" && code == none:
		b.ok(check, "%s", nothing)
	case code == "NotImplemented" || status == http.StatusNotImplemented || status == http.StatusMethodNotAllowed:
		b.ok(check, "the server has no such thing")
	case status == http.StatusForbidden:
		b.warn(check, "allow "+permission+" to whoever runs this", "the user may not ask")
	default:
		b.warn(check, "see whether the server knows such a request ("+permission+"), and whether this user may make it", "%v", err)
	}
}

// httpStatus is the status of the response behind an error; 0 where there was none.
func httpStatus(err error) int {
	var response *awshttp.ResponseError
	if errors.As(err, &response) {
		return response.HTTPStatusCode()
	}
	return 0
}
