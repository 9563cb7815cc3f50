// Package netfault says in few words why a connection was not made, or brought no answer, for who names the address
// himself.
package netfault

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
)

// Undialed recognizes, in what grpc-go says of a call that is UNAVAILABLE, that no connection was made, and why.
func Undialed(message string) (reason string, ok bool) {
	if _, names, found := strings.Cut(message, "name resolver error: "); found {
		return names, true
	}
	_, reason, ok = strings.Cut(message, "Error while dialing: ")
	if _, behind, found := strings.Cut(reason, ": "); found { // dial tcp and the address
		reason = behind
	}
	return strings.TrimPrefix(strings.TrimSuffix(reason, `"`), "connect: "), ok
}

// Mismatch recognizes, in what a client of HTTP or of gRPC says, that a server answers which speaks something else, and
// says which address it may be that is wanted: to try again is of no use.
func Mismatch(message string) (reason string, ok bool) {
	switch {
	case strings.Contains(message, `malformed HTTP response "\x00\x00`): // HTTP/2 begins with its settings
		return "who answers speaks gRPC and not HTTP; give its address as host:port, without http://, or that of HTTP", true
	case strings.Contains(message, "looked like an HTTP/1.1 header"):
		return "who answers speaks HTTP and not gRPC; give its address as http://host:port, or that of gRPC", true
	case strings.Contains(message, "server gave HTTP response to HTTPS client"):
		return "who answers has no TLS; give its address as http://host:port", true
	}
	return "", false
}

// Reason is why; ok is false where the error is not about a connection.
func Reason(err error) (text string, ok bool) {
	var name *net.DNSError
	var timeout net.Error
	var operation *net.OpError
	switch {
	case errors.As(err, &name):
		return fmt.Sprintf("%s: %s", name.Name, name.Err), true
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "no answer in time", true
	case errors.As(err, &operation):
		return strings.TrimPrefix(operation.Err.Error(), "connect: "), true
	}
	return "", false
}
