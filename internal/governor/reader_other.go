//go:build !unix

package governor

import (
	"io"
	"net"
)

func newPooledReader(net.Conn) io.Reader { return nil }
