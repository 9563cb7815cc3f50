package devstack

import "golang.org/x/sys/unix"

// hasXattr reports whether files in dir can have extended attributes.
func hasXattr(dir string) bool {
	const name = "user.waybill-probe"
	if err := unix.Setxattr(dir, name, []byte("1"), 0); err != nil {
		return false
	}
	return unix.Removexattr(dir, name) == nil
}
