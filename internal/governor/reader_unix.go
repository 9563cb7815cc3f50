//go:build unix

package governor

import (
	"io"
	"net"
	"sync"
	"syscall"
)

// readBytes is what is read ahead at most.
const readBytes = 32 << 10

var readBuffers = sync.Pool{New: func() any { return new([readBytes]byte) }}

// pooledReader holds a buffer only while there is something in it: two thousand idle
// connections hold none.
type pooledReader struct {
	raw   syscall.RawConn
	try   func(fd uintptr) bool // r.read, bound once
	buf   *[readBytes]byte
	at, n int
	err   error
}

// newPooledReader returns nil when conn is no plain socket.
func newPooledReader(conn net.Conn) io.Reader {
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil
	}
	r := &pooledReader{raw: raw}
	r.try = r.read
	return r
}

// Read implements io.Reader.
func (r *pooledReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if r.buf == nil {
		if err := r.raw.Read(r.try); err != nil {
			return 0, err
		}
		if r.err != nil {
			return 0, r.err
		}
	}
	n := copy(p, r.buf[r.at:r.n])
	if r.at += n; r.at == r.n {
		r.release()
	}
	return n, nil
}

// read reads what there is; false means that there is nothing yet.
func (r *pooledReader) read(fd uintptr) bool {
	r.buf, r.at, r.n, r.err = readBuffers.Get().(*[readBytes]byte), 0, 0, nil
	for {
		n, err := syscall.Read(int(fd), r.buf[:])
		if err == syscall.EINTR {
			continue
		}
		if n > 0 {
			r.n = n
			return true
		}
		r.release()
		switch err {
		case nil:
			r.err = io.EOF
		case syscall.EAGAIN:
			return false
		default:
			r.err = err
		}
		return true
	}
}

func (r *pooledReader) release() {
	readBuffers.Put(r.buf)
	r.buf = nil
}
