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
