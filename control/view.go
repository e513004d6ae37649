package control

import (
	"errors"
	"os"
	"syscall"
)

// ViewOf is what this process sees under a path.
func ViewOf(path string) (View, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return View{}, err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return View{}, errors.New("no device and inode known")
	}
	v := View{Path: path, Dev: uint64(st.Dev), Ino: st.Ino}
	if st.Mode&syscall.S_IFMT == syscall.S_IFBLK {
		v.Rdev = uint64(st.Rdev)
	}
	return v, nil
}

// Same says whether two views are of the same file or device.
func (v View) Same(o View) bool {
	if v.Rdev != 0 && v.Rdev == o.Rdev {
		return true
	}
	return v.Dev == o.Dev && v.Ino == o.Ino
}
