//go:build !linux

package devstack

// hasXattr is false: the names of extended attributes differ between systems, and
// versitygw works without them.
func hasXattr(string) bool { return false }
