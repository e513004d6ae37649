package blockdev

import "golang.org/x/sys/unix"

// FileOf tells which file a device is; ok is false for one that is no file, or
// whose name another file has by now.
func FileOf(d interface {
	Name() string
	ID() ID
}) (path string, dev, inode uint64, ok bool) {
	id := d.ID()
	if id.Kind != IDFile {
		return "", 0, 0, false
	}
	var st unix.Stat_t
	ok = unix.Stat(d.Name(), &st) == nil && st.Dev == id.A && st.Ino == id.B
	return d.Name(), id.A, id.B, ok
}
