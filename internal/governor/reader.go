package governor

import (
	"bufio"
	"io"
	"net"
)

// reader reads a connection ahead, so that small frames do not cost two system calls each.
type reader interface{ io.Reader }

// plainReadBytes is what a reader holds of a connection that cannot be asked whether there
// is anything to read.
const plainReadBytes = 4 << 10

func newReader(conn net.Conn) reader {
	if r := newPooledReader(conn); r != nil {
		return r
	}
	return bufio.NewReaderSize(conn, plainReadBytes)
}
