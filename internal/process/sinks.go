package process

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"go.opentelemetry.io/otel/metric"

	"github.com/waybillhq/waybill/internal/s3fault"
	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/sinks"
)

// S3 is where the archive is, of whatever writes or reads it.
type S3 struct {
	S3Endpoint  string `name:"s3-endpoint" env:"WAYBILL_S3_ENDPOINT" placeholder:"URL" help:"${s3_endpoint_default}"`
	S3Region    string `name:"s3-region" env:"WAYBILL_S3_REGION" help:"Region of the bucket." default:"${s3_region}"`
	S3Bucket    string `name:"s3-bucket" env:"WAYBILL_S3_BUCKET" help:"Bucket of the archive; ${s3_bucket_default}."`
	S3Prefix    string `name:"s3-prefix" env:"WAYBILL_S3_PREFIX" help:"Prefix of the archive's keys. Each pipeline needs its own." default:"${s3_prefix}"`
	S3AccessKey string `name:"s3-access-key" env:"WAYBILL_S3_ACCESS_KEY" secret:"" help:"Access key. Default: the AWS SDK's usual sources."`
	S3SecretKey string `name:"s3-secret-key" env:"WAYBILL_S3_SECRET_KEY" secret:"" help:"Secret key; WAYBILL_S3_SECRET_KEY_FILE names a file that holds it."`
	S3PathStyle bool   `name:"s3-path-style" env:"WAYBILL_S3_PATH_STYLE" help:"Bucket in the path and not in the host name, as most servers other than AWS want it." default:"${s3_path_style}" negatable:""`
	S3Checksums string `name:"s3-checksums" env:"WAYBILL_S3_CHECKSUMS" help:"When checksums are sent; some servers refuse what they do not need." enum:"when_supported,when_required" default:"${s3_checksums}"`
	// S3Isolated keeps AWS's variables and files out of it. No command line has it.
	S3Isolated bool `kong:"-"`
}

// DefaultS3 is what the flags are when nobody sets them.
func DefaultS3() S3 {
	d := sinks.DefaultS3Config()
	return S3{S3Region: d.Region, S3Prefix: "waybill", S3PathStyle: d.PathStyle, S3Checksums: d.Checksums}
}

// config is what package sinks wants.
func (c S3) config() sinks.S3Config {
	s := sinks.DefaultS3Config()
	s.Endpoint, s.Region, s.AccessKey, s.SecretKey = c.S3Endpoint, c.S3Region, c.S3AccessKey, c.S3SecretKey
	s.PathStyle, s.Checksums, s.Isolated = c.S3PathStyle, c.S3Checksums, c.S3Isolated
	return s
}

// Check names the first setting that cannot work, if there is an archive.
func (c S3) Check() error {
	if c.S3Bucket == "" {
		return nil
	}
	return c.config().Validate()
}

// Where is the bucket and its server, for people.
func (c S3) Where() string { return s3fault.Where(c.S3Bucket, c.S3Endpoint, c.S3Region) }

// Client returns a client of the server. The options come last.
func (c S3) Client(ctx context.Context, options ...func(*s3.Options)) (*s3.Client, error) {
	return sinks.NewS3Client(ctx, c.config(), options...)
}

// ArchiveReader returns a reader of the archive.
func (c S3) ArchiveReader(ctx context.Context) (*sinks.ArchiveReader, error) {
	if c.S3Bucket == "" {
		return nil, errors.New("--s3-bucket: is empty; name the bucket of the archive, or set WAYBILL_S3_BUCKET")
	}
	client, err := c.Client(ctx)
	if err != nil {
		return nil, err
	}
	return sinks.NewArchiveReader(client, c.S3Bucket, c.S3Prefix, sinks.DefaultArchiveConfig().Timeout)
}

// Archive is the settings of the sink that writes the archive.
type Archive struct {
	S3
	S3CreateBucket      bool          `name:"s3-create-bucket" env:"WAYBILL_S3_CREATE_BUCKET" help:"Create a missing bucket. For development."`
	ArchiveLinger       time.Duration `help:"How long an object waits to be filled." default:"${archive_linger}"`
	ArchiveObjectEvents int           `help:"Most events of an object." default:"${archive_object_events}"`
	ArchiveObjectBytes  int           `help:"Most bytes of events of an object, before compression." default:"${archive_object_bytes}"`
}

// config is what package sinks wants.
func (c Archive) config() sinks.ArchiveConfig {
	a := sinks.DefaultArchiveConfig()
	a.Bucket, a.Prefix, a.CreateBucket = c.S3Bucket, c.S3Prefix, c.S3CreateBucket
	a.Linger, a.MaxObjectEvents, a.MaxObjectBytes = c.ArchiveLinger, c.ArchiveObjectEvents, c.ArchiveObjectBytes
	a.Log = slog.Default()
	return a
}

func (c Archive) sink(ctx context.Context, queue *pipeline.Queue, log *slog.Logger, meter metric.Meter) (*sinks.Archive, error) {
	client, err := c.Client(ctx)
	if err != nil {
		return nil, err
	}
	a := c.config()
	a.Cursors = pipeline.NewCursors(queue, a.Name)
	a.Meter, a.Log = meter, log
	return sinks.NewArchive(client, a)
}

// Ingress is the settings of the sink that delivers to a ChipIngress endpoint.
type Ingress struct {
	IngressEndpoint      string            `help:"ChipIngress endpoint, as host:port; empty: this process does not deliver to one."`
	IngressTLS           bool              `name:"ingress-tls" env:"WAYBILL_INGRESS_TLS" help:"Connect with TLS."`
	IngressCAFile        string            `name:"ingress-ca-file" env:"WAYBILL_INGRESS_CA_FILE" type:"path" want:"file" help:"PEM certificates that may sign the endpoint's. Default: the system's."`
	IngressCertFile      string            `name:"ingress-cert-file" env:"WAYBILL_INGRESS_CERT_FILE" type:"path" want:"file" help:"Client certificate in PEM."`
	IngressKeyFile       string            `name:"ingress-key-file" env:"WAYBILL_INGRESS_KEY_FILE" type:"path" want:"file" help:"Key of the client certificate in PEM."`
	IngressUser          string            `help:"User of Basic authorization."`
	IngressPassword      string            `secret:"" help:"Password of Basic authorization; WAYBILL_INGRESS_PASSWORD_FILE names a file that holds it."`
	IngressHeaders       map[string]string `secret:"" help:"Headers sent with every call, as name=value;name=value."`
	IngressRequestBytes  int               `help:"Most bytes of one request." default:"${ingress_request_bytes}"`
	IngressRequestEvents int               `help:"Most events of one request." default:"${ingress_request_events}"`
	IngressTimeout       time.Duration     `help:"How long one call may take." default:"${ingress_timeout}"`
}

// Config is what package sinks wants.
func (c Ingress) Config() sinks.IngressConfig {
	i := sinks.DefaultIngressConfig()
	i.Endpoint = c.IngressEndpoint
	i.TLS = sinks.IngressTLS{Enabled: c.IngressTLS, CAFile: c.IngressCAFile, CertFile: c.IngressCertFile, KeyFile: c.IngressKeyFile}
	i.User, i.Password, i.Headers = c.IngressUser, c.IngressPassword, c.IngressHeaders
	i.MaxRequestBytes, i.MaxRequestEvents, i.Timeout = c.IngressRequestBytes, c.IngressRequestEvents, c.IngressTimeout
	return i
}

// Check names the settings that cannot work, if there is an endpoint.
func (c Ingress) Check() error {
	if c.IngressEndpoint == "" {
		return nil
	}
	return c.Config().Validate()
}

func (c Ingress) sink(log *slog.Logger, meter metric.Meter) (*sinks.Ingress, error) {
	i := c.Config()
	i.Meter, i.Log = meter, log
	return sinks.NewIngress(i)
}
