// Package doctor asks the servers of a pipeline whether they are what Waybill needs, and says of each
// thing that is not what would mend it.
package doctor

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/nats-io/nats.go"
)

// Level says how bad a finding is.
type Level string

// The levels. What is Warn works, and somebody should know; what is Fail loses events, or will not work.
const (
	OK   Level = "ok"
	Warn Level = "warn"
	Fail Level = "fail"
)

// Finding is one thing that was looked at.
type Finding struct {
	Server string `json:"server"` // postgres, nats, s3, ingress or processes
	Check  string `json:"check"`
	Level  Level  `json:"level"`
	Found  string `json:"found"`
	Remedy string `json:"remedy,omitempty"` // what to do about it
}

// Config names what is asked. What is empty is not asked.
type Config struct {
	DatabaseURL string
	Lanes       int
	// NATS connects; it waits until the server answers or says why not.
	NATS func(context.Context) (*nats.Conn, error)
	// MaxEventBytes is the largest event that ingests take.
	MaxEventBytes int
	// S3 is a client of the archive's server; nil: there is no archive.
	S3             *s3.Client
	Bucket, Prefix string
	// Probe tries whether the bucket keeps what the archive is built on, by writing to it.
	Probe func(context.Context) error
	// Ingress tries the endpoint at IngressEndpoint; nil: there is none.
	Ingress         func(context.Context) error
	IngressEndpoint string
	// ExpiryMargin is how far clocks may differ before what is not yet expired is dropped, or the reverse.
	ExpiryMargin time.Duration
}

// serverTimeout bounds what one server is asked.
const serverTimeout = 30 * time.Second

// Examine asks all servers at once, and returns what it found by server.
func Examine(ctx context.Context, cfg Config) []Finding {
	parts := []func(context.Context, Config) []Finding{examinePostgres, examineNATS, examineS3, examineIngress}
	found := make([][]Finding, len(parts))
	var wg sync.WaitGroup
	for i, part := range parts {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, serverTimeout)
			defer cancel()
			found[i] = part(ctx, cfg)
		})
	}
	wg.Wait()
	var all []Finding
	for _, f := range found {
		all = append(all, f...)
	}
	return all
}

// patient collects findings about one server.
type patient struct {
	server   string
	findings []Finding
}

func (p *patient) ok(check, format string, args ...any) {
	p.findings = append(p.findings, Finding{Server: p.server, Check: check, Level: OK, Found: oneLine(fmt.Sprintf(format, args...))})
}

func (p *patient) warn(check, remedy, format string, args ...any) {
	p.findings = append(p.findings, Finding{p.server, check, Warn, oneLine(fmt.Sprintf(format, args...)), remedy})
}

func (p *patient) fail(check, remedy, format string, args ...any) {
	p.findings = append(p.findings, Finding{p.server, check, Fail, oneLine(fmt.Sprintf(format, args...)), remedy})
}

// clock judges how far a server's clock is from this machine's: theirs was read between two moments of
// ours, with the given precision.
func (p *patient) clock(theirs, before, after time.Time, precision, margin time.Duration) {
	const remedy = "run a time service (chrony, or the cloud's) on both machines"
	off := time.Duration(0)
	switch {
	case theirs.Add(precision).Before(before):
		off = theirs.Add(precision).Sub(before)
	case theirs.After(after):
		off = theirs.Sub(after)
	}
	text := fmt.Sprintf("its clock is %s off this machine's, give or take %s", off.Abs().Round(time.Millisecond), (after.Sub(before) + precision).Round(time.Millisecond))
	switch {
	case off.Abs() > margin/2:
		p.fail("clock", remedy+"; beyond "+margin.String()+" events are dropped from the queue before they expire, or delivered after", "%s", text)
	case off.Abs() > time.Second:
		p.warn("clock", remedy, "%s", text)
	default:
		p.ok("clock", "%s", text)
	}
}

// space judges how full something is.
func (p *patient) space(check, what, remedy string, used, most uint64) {
	if most == 0 {
		return
	}
	share := float64(used) / float64(most)
	text := fmt.Sprintf("%s: %s of %s used (%.0f %%)", what, bytesText(used), bytesText(most), 100*share)
	switch {
	case share > 0.97:
		p.fail(check, remedy, "%s", text)
	case nearlyFull(used, most):
		p.warn(check, remedy, "%s", text)
	default:
		p.ok(check, "%s", text)
	}
}

// nearlyFull is what someone should be told before it hurts.
func nearlyFull(used, most uint64) bool { return float64(used) > 0.85*float64(most) }

// bytesText writes a size for people.
func bytesText(n uint64) string {
	const units = "KMGTP"
	if n < 1024 {
		return fmt.Sprintf("%d bytes", n)
	}
	size, unit := float64(n)/1024, 0
	for ; size >= 1024 && unit < len(units)-1; unit++ {
		size /= 1024
	}
	return fmt.Sprintf("%.1f %ciB", size, units[unit])
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// version is two numbers, as in 2.14.
type version struct{ major, minor int }

func parseVersion(text string) (v version, ok bool) {
	n, err := fmt.Sscanf(text, "%d.%d", &v.major, &v.minor)
	return v, err == nil && n == 2
}

func (v version) before(other version) bool {
	return v.major < other.major || v.major == other.major && v.minor < other.minor
}
