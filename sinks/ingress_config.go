package sinks

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"go.opentelemetry.io/otel/metric"
	"google.golang.org/grpc"
)

// minIngressKeepalive is the shortest ping interval that a grpc-go server with a
// sensible enforcement policy puts up with; grpc-go raises shorter ones to it.
const minIngressKeepalive = 10 * time.Second

// maxIngressConnections bounds what one process opens to one endpoint.
const maxIngressConnections = 64

// IngressConfig configures the sink that delivers to a ChipIngress endpoint. Start from
// DefaultIngressConfig: a zero means zero.
type IngressConfig struct {
	// Name is the sink's name in Postgres's table of sinks.
	Name string

	// Endpoint is host:port, or a gRPC target such as dns:///host:port.
	Endpoint string

	// TLS secures the connection. Off by default, for an endpoint on this machine.
	TLS IngressTLS

	// User and Password are sent with every call as Basic authorization, where User is
	// not empty. The password is a secret.
	User, Password string

	// Headers are sent with every call. Names are lower case; values may be secrets.
	Headers map[string]string

	// MaxRequestBytes bounds the encoding of one PublishBatch request. An event larger
	// than that travels alone.
	MaxRequestBytes int

	// MaxRequestEvents bounds the events of one PublishBatch request.
	MaxRequestEvents int

	// Linger is how long a lane's first batch waits for company. 0: not at all.
	Linger time.Duration

	// Timeout bounds one call. What it cuts off may have been delivered: it is tried
	// again, and the endpoint may see it twice.
	Timeout time.Duration

	// KeepaliveTime is the interval of pings on a quiet connection, at least 10 s; 0
	// sends none. KeepaliveTimeout is how long an answer may take before the connection
	// is given up.
	KeepaliveTime, KeepaliveTimeout time.Duration

	// Connections is how many connections the lanes share.
	Connections int

	// UnknownFor is how long an event may be answered with the error UNKNOWN, while the
	// endpoint takes other events, before it is refused so that its lane goes on. 0:
	// for ever, and the lane waits.
	UnknownFor time.Duration

	// DialOptions are added to the connection's, for instance a stats handler or
	// credentials that change with every call.
	DialOptions []grpc.DialOption

	// Meter makes the sink's instruments; nil records nothing.
	Meter metric.Meter

	// Log is required.
	Log *slog.Logger
}

// IngressTLS says how the connection to the endpoint is secured.
type IngressTLS struct {
	Enabled bool
	// CAFile holds the PEM certificates that may sign the endpoint's. Empty: the
	// system's.
	CAFile string
	// ServerName is the name the endpoint's certificate must have. Empty: the host of
	// Endpoint.
	ServerName string
	// CertFile and KeyFile are this client's certificate and key in PEM, both or none.
	CertFile, KeyFile string
}

// DefaultIngressConfig returns the defaults. Endpoint is empty and must be set.
func DefaultIngressConfig() IngressConfig {
	return IngressConfig{
		Name:             "ingress",
		MaxRequestBytes:  4_000_000, // within the 4 MiB that a grpc-go server takes by default
		MaxRequestEvents: 1000,
		Timeout:          10 * time.Second,
		KeepaliveTime:    30 * time.Second,
		KeepaliveTimeout: 10 * time.Second,
		Connections:      1,
		UnknownFor:       time.Hour,
		Log:              slog.Default(),
	}
}

// Validate reports every setting that cannot work, each with its remedy.
func (c IngressConfig) Validate() error {
	var errs []error
	bad := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	bad(c.Name != "", "ingress sink: Name is empty; use the sink's name in the table of sinks")
	bad(c.MaxRequestBytes > 0, "ingress sink: MaxRequestBytes (WAYBILL_INGRESS_REQUEST_BYTES) is %d; use a positive number, such as 4000000", c.MaxRequestBytes)
	bad(c.MaxRequestEvents > 0, "ingress sink: MaxRequestEvents (WAYBILL_INGRESS_REQUEST_EVENTS) is %d; use a positive number, such as 1000", c.MaxRequestEvents)
	bad(c.Linger >= 0, "ingress sink: Linger is %v; use 0 or more", c.Linger)
	bad(c.Timeout > 0, "ingress sink: Timeout (WAYBILL_INGRESS_TIMEOUT) is %v; use a positive duration, such as 10s", c.Timeout)
	bad(c.KeepaliveTime == 0 || c.KeepaliveTime >= minIngressKeepalive,
		"ingress sink: KeepaliveTime is %v; use 0 for none or at least %v", c.KeepaliveTime, minIngressKeepalive)
	bad(c.KeepaliveTime == 0 || c.KeepaliveTimeout > 0,
		"ingress sink: KeepaliveTimeout is %v; use a positive duration, such as 10s", c.KeepaliveTimeout)
	bad(c.Connections > 0 && c.Connections <= maxIngressConnections,
		"ingress sink: Connections is %d; use 1 to %d", c.Connections, maxIngressConnections)
	bad(c.UnknownFor >= 0, "ingress sink: UnknownFor is %v; use 0 for ever or a positive duration", c.UnknownFor)
	bad(c.Log != nil, "ingress sink: Log is missing; give it a logger")
	return errors.Join(append(errs, checkIngressEndpoint(c.Endpoint), c.TLS.validate(), c.checkHeaders())...)
}

func checkIngressEndpoint(endpoint string) error {
	scheme, _, hasScheme := strings.Cut(endpoint, "://")
	switch {
	case endpoint == "":
		return errors.New("ingress sink: Endpoint (WAYBILL_INGRESS_ENDPOINT) is empty; use host:port")
	case scheme == "http" || scheme == "https":
		return fmt.Errorf("ingress sink: Endpoint (WAYBILL_INGRESS_ENDPOINT) %q is a URL; use host:port, and TLS.Enabled (WAYBILL_INGRESS_TLS) for https", endpoint)
	case hasScheme || strings.HasPrefix(endpoint, "unix:"):
		return nil
	}
	if _, _, err := net.SplitHostPort(endpoint); err != nil {
		return fmt.Errorf("ingress sink: Endpoint (WAYBILL_INGRESS_ENDPOINT) %q: use host:port: %w", endpoint, err)
	}
	return nil
}

// checkHeaders refuses names that gRPC would reject with every call.
func (c IngressConfig) checkHeaders() error {
	if c.User == "" && c.Password != "" {
		return errors.New("ingress sink: Password (WAYBILL_INGRESS_PASSWORD) is set without User (WAYBILL_INGRESS_USER); set both or none")
	}
	if strings.Contains(c.User, ":") {
		return errors.New("ingress sink: User (WAYBILL_INGRESS_USER) contains a colon, which Basic authorization cannot carry; use another name")
	}
	for name, value := range c.Headers {
		if err := checkIngressHeader(name, value); err != nil {
			return err
		}
		if name == "authorization" && c.User != "" {
			return errors.New("ingress sink: Headers (WAYBILL_INGRESS_HEADERS) has authorization and User (WAYBILL_INGRESS_USER) is set; use one of them")
		}
	}
	return nil
}

func checkIngressHeader(name, value string) error {
	for i, r := range name {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.' {
			// What follows may be a value that was put there by mistake, and a secret.
			return fmt.Errorf("ingress sink: Headers (WAYBILL_INGRESS_HEADERS): a name has %q behind %q: write name=value, with lower-case letters, digits, -, _ and . in names only", r, name[:i])
		}
	}
	if name == "" {
		return errors.New("ingress sink: Headers (WAYBILL_INGRESS_HEADERS): one has no name; write name=value, and a semicolon between two")
	}
	if strings.HasPrefix(name, "grpc-") || strings.HasSuffix(name, "-bin") {
		return fmt.Errorf("ingress sink: Headers (WAYBILL_INGRESS_HEADERS): name %q: use a name that does not begin with grpc- or end in -bin", name)
	}
	for i := range len(value) {
		if value[i] < ' ' || value[i] > '~' {
			return fmt.Errorf("ingress sink: Headers (WAYBILL_INGRESS_HEADERS): the value of %q has a character outside printable ASCII; remove it", name)
		}
	}
	return nil
}

func (t IngressTLS) validate() error {
	if !t.Enabled && t != (IngressTLS{}) {
		return errors.New("ingress sink: TLS has settings and is not enabled; set TLS.Enabled (WAYBILL_INGRESS_TLS) or leave them out")
	}
	if (t.CertFile == "") != (t.KeyFile == "") {
		return errors.New("ingress sink: TLS.CertFile (WAYBILL_INGRESS_CERT_FILE) and TLS.KeyFile (WAYBILL_INGRESS_KEY_FILE) belong together; set both or none")
	}
	return nil
}

// load reads the files that t names.
func (t IngressTLS) load() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName}
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, fmt.Errorf("ingress sink: read TLS.CAFile (WAYBILL_INGRESS_CA_FILE): %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ingress sink: TLS.CAFile (WAYBILL_INGRESS_CA_FILE) %s holds no certificate; use a PEM file", t.CAFile)
		}
	}
	if t.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("ingress sink: read TLS.CertFile (WAYBILL_INGRESS_CERT_FILE) and TLS.KeyFile (WAYBILL_INGRESS_KEY_FILE): %w", err)
		}
		config.Certificates = []tls.Certificate{cert}
	}
	return config, nil
}

// LogValue is what a log may show: no password, no header values.
func (c IngressConfig) LogValue() slog.Value {
	names := make([]string, 0, len(c.Headers))
	for name := range c.Headers {
		names = append(names, name)
	}
	return slog.GroupValue(
		slog.String("name", c.Name),
		slog.String("endpoint", c.Endpoint),
		slog.Bool("tls", c.TLS.Enabled),
		slog.String("user", c.User),
		slog.Any("headers", names),
		slog.Int("max_request_bytes", c.MaxRequestBytes),
		slog.Int("max_request_events", c.MaxRequestEvents),
		slog.Duration("timeout", c.Timeout),
		slog.Int("connections", c.Connections),
	)
}
