package notefile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// File is a note that is mapped.
type File struct {
	f    *os.File
	path string
	mem  []byte
}

// unplaced is behind the name of a note that nobody is to find.
const unplaced = ".new"

// Create makes a note of zeros with all its space taken, as a page that has none
// when it is first written would be a signal. [File.Place] gives it its name: a kill
// before leaves no note there that says nothing, or half of what it is to say.
func Create(path string, size int64) (_ *File, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	path += unplaced
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(path)
		}
	}()
	if err := takeSpace(f, size); err != nil {
		return nil, fmt.Errorf("space for the note %s: %w", path, err)
	}
	return mapped(f, size)
}

// Open maps a note that is there.
func Open(path string, size int64) (_ *File, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	if st.Size != size {
		return nil, fmt.Errorf("the note %s has %d bytes, expected %d", path, st.Size, size)
	}
	return mapped(f, size)
}

func mapped(f *os.File, size int64) (*File, error) {
	mem, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mapping the note %s: %w", f.Name(), err)
	}
	return &File{f, f.Name(), mem}, nil
}

// Place puts a note that was made where others find it, in the place of an older
// one.
func (m *File) Place() error {
	path := strings.TrimSuffix(m.path, unplaced)
	if err := os.Rename(m.path, path); err != nil {
		return err
	}
	m.path = path
	return nil
}

// takeSpace makes f that long, with fallocate or by writing zeros.
func takeSpace(f *os.File, size int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS):
			return err
		}
		_, err = f.WriteAt(make([]byte, size), 0)
		return err
	}
}

// Bytes is the mapping. It is touched inside of [Guard] only.
func (m *File) Bytes() []byte { return m.mem }

// Linked tells whether somebody else could find the note as it was made.
func (m *File) Linked() bool {
	var st unix.Stat_t
	return unix.Fstat(int(m.f.Fd()), &st) == nil && st.Nlink > 0 && st.Size == int64(len(m.mem))
}

// Remove takes the name away, if it is still that of this note. The mapping
// stays.
func (m *File) Remove() error {
	var st unix.Stat_t
	if unix.Fstat(int(m.f.Fd()), &st) == nil && st.Nlink == 0 {
		return nil
	}
	return os.Remove(m.path)
}

// Unmap ends the use and leaves the note to others.
func (m *File) Unmap() error {
	err := unix.Munmap(m.mem)
	m.mem = nil
	if cerr := m.f.Close(); err == nil {
		err = cerr
	}
	return err
}

// Guard runs f, which touches a mapping. A page that cannot be had, because the
// file was cut off or its disk is full, is a signal to other programs; here it is
// an error.
func Guard(f func()) (err error) {
	before := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(before)
		if r := recover(); r != nil {
			fault, ok := r.(interface{ Addr() uintptr })
			if !ok {
				panic(r)
			}
			err = fmt.Errorf("the note cannot be had in memory at %#x", fault.Addr())
		}
	}()
	f()
	return nil
}
