//go:build failpoints

package failpoint

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// ErrLost is what Err reports instead of an answer.
var ErrLost = errors.New("fail point: the answer was lost")

// desk is where the orders of this process come in.
type desk struct {
	path string // of the file; empty: there are none

	mu      sync.Mutex // guards what follows
	written time.Time  // of the file that order was read from
	order   Order
	left    int // hits until it is carried out
}

var orders = newDesk(os.Getenv("WAYBILL_FAILPOINTS"), os.Getenv("WAYBILL_ID"))

func newDesk(dir, id string) *desk {
	if dir == "" || id == "" {
		return &desk{}
	}
	return &desk{path: filepath.Join(dir, id)}
}

// Hit carries out what is ordered for the named point.
func Hit(point string) { orders.obey(point) }

// Err carries out what is ordered for the point behind an act, unless the act failed
// anyway. It returns err, or ErrLost where the answer is to be lost.
func Err(point string, err error) error {
	if err == nil && orders.obey(point) == Lose {
		return ErrLost
	}
	return err
}

// obey returns what was done; empty: nothing.
func (d *desk) obey(point string) string {
	order, due := d.due(point)
	if !due {
		return ""
	}
	fmt.Fprintf(os.Stderr, "fail point %s", order)
	switch order.Action {
	case Kill:
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // cannot fail
		select {}                                      // the other threads may live on for an instant
	case Stop:
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP) // cannot fail
		time.Sleep(StopSettles)                        // this thread must not go on before
	}
	return order.Action
}

// due reports whether it is this hit of the point that an order means.
func (d *desk) due(point string) (Order, bool) {
	if d.path == "" {
		return Order{}, false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.read() || d.order.Point != point {
		return Order{}, false
	}
	if d.left--; d.left > 0 {
		return Order{}, false
	}
	d.written = time.Time{}
	return d.order, os.Rename(d.path, d.path+HitSuffix) == nil
}

// read reports whether there is an order, and counts a new one from here on.
func (d *desk) read() bool {
	info, err := os.Stat(d.path)
	if err != nil {
		return false
	}
	if info.ModTime().Equal(d.written) {
		return true
	}
	text, err := os.ReadFile(d.path)
	if err != nil {
		return false // it was taken back meanwhile
	}
	order, err := ParseOrder(string(text))
	if err != nil {
		panic(err) // whoever wrote it has to know
	}
	d.written, d.order, d.left = info.ModTime(), order, order.Nth
	return true
}
