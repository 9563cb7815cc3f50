package s3mem

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

const (
	signatureScheme = "AWS4-HMAC-SHA256 "
	amzTimeForm     = "20060102T150405Z"
)

// authenticate makes the signature of a request anew and compares: so that a client with wrong keys
// gets what a real server would answer it, and a stranger on the port gets nothing.
func (s *Server) authenticate(r *http.Request) *apiError {
	given := r.Header.Get("Authorization")
	fields := map[string]string{}
	for field := range strings.SplitSeq(strings.TrimPrefix(given, signatureScheme), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(field), "=")
		fields[name] = value
	}
	scope := strings.Split(fields["Credential"], "/") // key, day, region, service, "aws4_request"
	at, err := time.Parse(amzTimeForm, r.Header.Get("X-Amz-Date"))
	if !strings.HasPrefix(given, signatureScheme) || len(scope) != 5 || err != nil {
		return &apiError{http.StatusForbidden, "AccessDenied", "The request is not signed with AWS Signature Version 4 in its headers."}
	}
	if scope[0] != s.accessKey {
		return &apiError{http.StatusForbidden, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."}
	}
	if scope[2] != Region {
		return &apiError{http.StatusBadRequest, "AuthorizationHeaderMalformed", "The region '" + scope[2] + "' is wrong; expecting '" + Region + "'"}
	}
	again := signedPart(r, strings.Split(fields["SignedHeaders"], ";"))
	err = v4.NewSigner().SignHTTP(context.Background(), aws.Credentials{AccessKeyID: s.accessKey, SecretAccessKey: s.secretKey}, again,
		r.Header.Get("X-Amz-Content-Sha256"), scope[3], scope[2], at,
		func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true }) // as S3 has it
	if err != nil || again.Header.Get("Authorization") != given {
		return &apiError{http.StatusForbidden, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided."}
	}
	return nil
}

// signedPart returns what the signature of a request is of.
func signedPart(r *http.Request, names []string) *http.Request {
	u := *r.URL // the signer puts the query into its own order
	out := &http.Request{Method: r.Method, URL: &u, Host: r.Host, Header: http.Header{}}
	for _, name := range names {
		switch name {
		case "host":
		case "content-length":
			out.ContentLength = r.ContentLength
		default:
			out.Header[http.CanonicalHeaderKey(name)] = r.Header.Values(name)
		}
	}
	return out
}
