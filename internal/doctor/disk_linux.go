package doctor

import "syscall"

// diskUse returns how much of the file system of a directory is used, by what its owner may use, and its
// size, both in bytes.
func diskUse(dir string) (used, total uint64, err error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return 0, 0, err
	}
	total = fs.Blocks * uint64(fs.Bsize)
	return total - fs.Bavail*uint64(fs.Bsize), total, nil
}
