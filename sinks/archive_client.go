package sinks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/logging"
)

const (
	// s3Attempts and s3MaxBackoff bound the client's own retries, which are for what
	// passes within a second or two; an outage is the lane worker's, and a call that waits
	// when the server is back keeps its lane waiting too.
	s3Attempts   = 3
	s3MaxBackoff = time.Second
	// s3ResponseTimeout is how long a server may think once it has the whole request.
	// The SDK waits for ever by default.
	s3ResponseTimeout = 10 * time.Second
	// s3IdleConns is above what the lanes of one process and their scans use at once.
	s3IdleConns = 128
)

// Values of S3Config.Checksums.
const (
	ChecksumsWhenSupported = "when_supported"
	ChecksumsWhenRequired  = "when_required"
)

// S3Config says how to reach an S3 server. Start from DefaultS3Config.
type S3Config struct {
	// Endpoint is the URL of a compatible server; empty: AWS.
	Endpoint string
	Region   string
	// AccessKey and SecretKey are static credentials; both empty: the SDK's usual chain
	// (environment, shared files, web identity, instance role). SecretKey is a secret.
	AccessKey, SecretKey string
	// PathStyle puts the bucket into the path instead of the host name, as most
	// compatible servers need it.
	PathStyle bool
	// Checksums is when_supported, or when_required for servers that do not know them.
	Checksums string
	// Isolated keeps AWS's variables and shared files out of it, for a server of the program's own. AccessKey and
	// SecretKey must be given then.
	Isolated bool
}

// DefaultS3Config is AWS in us-east-1 with the SDK's usual credentials.
func DefaultS3Config() S3Config {
	return S3Config{Region: "us-east-1", Checksums: ChecksumsWhenSupported}
}

// Validate names the first field that cannot work and what would.
func (c S3Config) Validate() error {
	if strings.Contains(c.Endpoint, "@") { // it would be logged, and nobody would use it
		return errors.New("S3Config.Endpoint (WAYBILL_S3_ENDPOINT) has a user in it: give keys as WAYBILL_S3_ACCESS_KEY and WAYBILL_S3_SECRET_KEY")
	}
	if c.Endpoint != "" {
		u, err := url.Parse(c.Endpoint)
		if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
			return fmt.Errorf("S3Config.Endpoint (WAYBILL_S3_ENDPOINT) is %q: want a URL such as https://s3.example.com", c.Endpoint)
		}
	}
	switch {
	case c.Region == "":
		return errors.New("S3Config.Region (WAYBILL_S3_REGION) is empty: requests are signed for a region; compatible servers mostly take us-east-1")
	case (c.AccessKey == "") != (c.SecretKey == ""):
		return errors.New("S3Config.AccessKey (WAYBILL_S3_ACCESS_KEY) and SecretKey (WAYBILL_S3_SECRET_KEY): give both, or neither for the SDK's usual credentials")
	case c.Isolated && c.AccessKey == "":
		return errors.New("S3Config.Isolated leaves out where the SDK finds its usual credentials: give AccessKey and SecretKey")
	case c.Checksums != ChecksumsWhenSupported && c.Checksums != ChecksumsWhenRequired:
		return fmt.Errorf("S3Config.Checksums is %q: want %s or %s", c.Checksums, ChecksumsWhenSupported, ChecksumsWhenRequired)
	}
	return nil
}

// LogValue leaves the secret out.
func (c S3Config) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("endpoint", c.Endpoint), slog.String("region", c.Region), slog.String("access_key", c.AccessKey),
		slog.Bool("path_style", c.PathStyle), slog.String("checksums", c.Checksums),
	)
}

// String leaves the secret out.
func (c S3Config) String() string { return c.LogValue().String() }

// NewS3Client makes a client with limits that suit the archive. It sends nothing yet.
// The options come last.
func NewS3Client(ctx context.Context, cfg S3Config, options ...func(*s3.Options)) (*s3.Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	given := aws.Config{
		Region: cfg.Region, Retryer: newS3Retryer,
		HTTPClient: awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
			t.ResponseHeaderTimeout = s3ResponseTimeout
			t.MaxIdleConns, t.MaxIdleConnsPerHost = s3IdleConns, s3IdleConns
		}),
	}
	if cfg.AccessKey != "" {
		given.Credentials = credentials.NewStaticCredentialsProvider(cfg.AccessKey, cfg.SecretKey, "")
	}
	options = append([]func(*s3.Options){cfg.apply}, options...)
	if cfg.Isolated {
		return s3.NewFromConfig(given, options...), nil
	}
	// The SDK writes to standard error by itself, in a form of its own. What matters of it comes back as an error.
	loaded, err := config.LoadDefaultConfig(ctx, config.WithLogger(logging.Nop{}), config.WithRegion(given.Region), config.WithRetryer(given.Retryer),
		config.WithHTTPClient(given.HTTPClient), config.WithCredentialsProvider(given.Credentials))
	if err != nil {
		return nil, fmt.Errorf("load the S3 client's configuration: %w", err)
	}
	return s3.NewFromConfig(loaded, options...), nil
}

func (c S3Config) apply(o *s3.Options) {
	if c.Endpoint != "" {
		o.BaseEndpoint = aws.String(c.Endpoint)
	}
	o.UsePathStyle = c.PathStyle
	o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenSupported
	o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenSupported
	if c.Checksums == ChecksumsWhenRequired {
		o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
	}
	// A range of an object has no checksum to compare with; frames carry their own.
	o.DisableLogOutputChecksumValidationSkipped = true
}

// newS3Retryer is the standard mode without its quota, which would switch backoff off in
// a full outage. The adaptive mode's quota never refills.
func newS3Retryer() aws.Retryer {
	return retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxAttempts = s3Attempts
		o.MaxBackoff = s3MaxBackoff
		o.RateLimiter = ratelimit.None
		o.Retryables = append(o.Retryables, retry.RetryableErrorCode{
			Codes: map[string]struct{}{"ConditionalRequestConflict": {}, "TooManyRequests": {}},
		})
	})
}
