//go:build !linux

package doctor

import "errors"

// diskRoom is of Linux.
func diskRoom(string) (free, total uint64, err error) {
	return 0, 0, errors.New("not known on this system")
}
