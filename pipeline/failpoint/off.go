//go:build !failpoints

package failpoint

// Hit is called where the named point is. In this build it does nothing.
func Hit(string) {}

// Err is called behind an act whose answer is err, and returns it. In this build it does
// nothing else.
func Err(_ string, err error) error { return err }
