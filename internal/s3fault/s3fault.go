// Package s3fault says for people why an S3 server did not do what it was asked to, and what to do about it. The SDK's
// own text has neither the setting that is to be corrected nor, where keys are missing, that they are.
package s3fault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"

	"github.com/waybillhq/waybill/internal/netfault"
	"github.com/waybillhq/waybill/sinks"
)

// Settings are the names of what says where the server is and who asks, such as --s3-bucket.
type Settings struct {
	Endpoint, Region, Bucket, PathStyle string
	Keys                                string // both of them
}

// Default are the settings of an archive.
func Default() Settings {
	return Settings{
		Endpoint: "--s3-endpoint (WAYBILL_S3_ENDPOINT)", Region: "--s3-region (WAYBILL_S3_REGION)",
		Bucket: "--s3-bucket (WAYBILL_S3_BUCKET)", PathStyle: "--s3-path-style (WAYBILL_S3_PATH_STYLE)",
		Keys: "--s3-access-key and --s3-secret-key (WAYBILL_S3_ACCESS_KEY, WAYBILL_S3_SECRET_KEY)",
	}
}

// Error is a failure in one line: which bucket, where, why, and what to do. It unwraps to what the SDK, and whoever
// called it, said.
type Error struct {
	text string
	err  error
}

func (e *Error) Error() string { return e.text }
func (e *Error) Unwrap() error { return e.err }

// Away reports that no server answered, though it was asked.
func (e *Error) Away() bool { return statusOf(e.err) == 0 && !withoutKeys(e.err) }

// Explain returns an *Error in place of the error of a request to S3, and any other error as it is. where is the bucket
// and its server, for people.
func Explain(err error, where string, settings Settings) error {
	var told *Error
	var operation *smithy.OperationError
	if errors.As(err, &told) || errors.Is(err, context.Canceled) || !errors.As(err, &operation) {
		return err
	}
	why, remedy := Fault(err, settings)
	if remedy == "" {
		return err
	}
	return &Error{err: err, text: fmt.Sprintf("%s: %s; %s", where, why, remedy)}
}

// Where is a bucket and its server, for Explain. An endpoint that is empty is AWS.
func Where(bucket, endpoint, region string) string {
	if endpoint == "" {
		endpoint = "AWS, " + region
	}
	return fmt.Sprintf("the bucket %s at %s", bucket, endpoint)
}

// Fault is why a request to S3 failed, and what to do about it; an empty remedy: that is not known here.
func Fault(err error, settings Settings) (why, remedy string) {
	code, status := codeOf(err), statusOf(err)
	switch {
	case errors.Is(err, sinks.ErrUnfit) && code != "NoSuchBucket":
		return "", "" // which says more than its code
	case withoutKeys(err):
		return "no keys are given, and the AWS SDK has none from its usual sources (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, shared files, the role of the machine)",
			"give " + settings.Keys
	case code == "NoSuchBucket" || code == "" && status == http.StatusNotFound || code == "NotFound":
		return "it does not exist", "create it, or correct " + settings.Bucket
	case status == http.StatusForbidden:
		return strings.TrimSuffix("access is denied: "+code, ": "),
			"correct " + settings.Keys + ", or let the user list, read and write the bucket (s3:ListBucket, s3:GetObject, s3:PutObject)"
	case status == http.StatusMovedPermanently || code == "AuthorizationHeaderMalformed":
		return "it is in another region", "set " + settings.Region + " to the bucket's region"
	case status == 0:
		return reason(err), "start the server, or correct " + settings.Endpoint
	case code == "NoSuchKey":
		return "", ""
	}
	return fmt.Sprintf("the server answers with status %d", status) + strings.TrimSuffix(", "+code, ", "),
		"see whether " + settings.Endpoint + " and " + settings.PathStyle + " suit the server"
}

// withoutKeys reports that no request was made, since there were no keys to sign it with. The SDK has no type for that.
func withoutKeys(err error) bool { return strings.Contains(err.Error(), "get credentials: ") }

// reason is why there was no answer.
func reason(err error) string {
	if text, ok := netfault.Reason(err); ok {
		return text
	}
	var operation *smithy.OperationError
	if errors.As(err, &operation) {
		err = operation.Err
	}
	return strings.Join(strings.Fields(err.Error()), " ")
}

// codeOf is S3's code of an error; empty where there is none.
func codeOf(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

// statusOf is the status of the answer behind an error; 0 where there was none.
func statusOf(err error) int {
	var response *awshttp.ResponseError
	if errors.As(err, &response) {
		return response.HTTPStatusCode()
	}
	return 0
}
