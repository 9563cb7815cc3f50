package doctor

import "syscall"

// diskRoom returns how much of the file system of a directory its owner may still take, and its size, both
// in bytes.
func diskRoom(dir string) (free, total uint64, err error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return 0, 0, err
	}
	return fs.Bavail * uint64(fs.Bsize), fs.Blocks * uint64(fs.Bsize), nil
}
