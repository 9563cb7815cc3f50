package sinks

import (
	"errors"
	"strings"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/waybillhq/waybill/schemas/chipingress"
)

// ingressFault is what the status of a whole request says about its events.
type ingressFault int

const (
	// ingressTryAgain: nothing is known about the events. Wrong credentials, a wrong
	// address and a service that is not there belong here as well: a mistake in the
	// configuration must not turn events into dead letters.
	ingressTryAgain ingressFault = iota
	// ingressTooLarge: a smaller request may pass.
	ingressTooLarge
	// ingressPoison: some event in the request is at fault.
	ingressPoison
)

// Codes of refusals that come from the status of a request.
const (
	codeTooLarge        = "TOO_LARGE"
	codeInvalidArgument = "INVALID_ARGUMENT"
)

// classifyIngress reads the status of a failed request. INVALID_ARGUMENT alone speaks
// of the content. OUT_OF_RANGE, DATA_LOSS, ALREADY_EXISTS and whatever else a server
// may invent can pass, or be mended on its side, so they are tried again.
func classifyIngress(err error) ingressFault {
	s := ingressStatus(err)
	switch s.Code() {
	case codes.InvalidArgument:
		return ingressPoison
	case codes.ResourceExhausted, codes.OutOfRange:
		if saysTooLarge(s.Message()) {
			return ingressTooLarge
		}
	}
	return ingressTryAgain
}

// ingressStatus is the status that err wraps, without what was wrapped around it.
func ingressStatus(err error) *status.Status {
	var carrier interface{ GRPCStatus() *status.Status }
	if errors.As(err, &carrier) {
		return carrier.GRPCStatus()
	}
	return status.FromContextError(err)
}

// saysTooLarge tells a message over a size limit from overload, which has the same
// status. The texts are those of the gRPC libraries: Go, C++ (and Python, Node, PHP,
// Ruby); Java; .NET; Rust, which says OUT_OF_RANGE.
func saysTooLarge(text string) bool {
	text = strings.ToLower(text)
	if !strings.Contains(text, "message") {
		return false
	}
	for _, limit := range []string{
		"larger than max",
		"exceeds maximum size",
		"exceeds the maximum configured message size",
		"message length too large",
	} {
		if strings.Contains(text, limit) {
			return true
		}
	}
	return false
}

// ingressErrorName is the short name of an error code, such as VALIDATION_FAILED.
// Codes that this version does not know count as UNKNOWN.
func ingressErrorName(code chipingress.PublishErrorCode) string {
	const prefix = "PUBLISH_ERROR_CODE_"
	name, known := chipingress.PublishErrorCode_name[int32(code)]
	if !known {
		name = chipingress.PublishErrorCode_PUBLISH_ERROR_CODE_UNKNOWN.String()
	}
	return strings.TrimPrefix(name, prefix)
}

// maxIngressReason bounds what a server's text adds to a receipt.
const maxIngressReason = 1024

// ingressReason makes a server's text fit for a receipt and for Postgres: bounded,
// valid UTF-8, without NUL.
func ingressReason(text string) string {
	if len(text) > maxIngressReason {
		cut := maxIngressReason
		for cut > 0 && !utf8.RuneStart(text[cut]) {
			cut--
		}
		text = text[:cut]
	}
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD")
}
