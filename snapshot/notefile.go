package snapshot

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
	"golang.org/x/sys/unix"
)

// Notes says where the notes of stores are kept (note.go).
type Notes struct {
	// Dir is where the notes are; empty: there are none, and every write is
	// committed before it is answered.
	Dir string
	// Boot is the id of this boot: after a power cut a note says nothing.
	Boot string

	host  noteHost               // nil: the machine; for tests
	lazy  bool                   // for tests: where nobody has said so, too
	watch func([]byte)           // for tests: sees a note after each store to it
	after func() <-chan struct{} // for tests: when answered writes are committed; nil: a timer
}

const notePrefix = "note-"

// DropNotes removes the notes in a directory, and tells how many there were: for
// a daemon that starts without the devices of the last one, and for what a
// restart has left.
func DropNotes(dir string) (n int, err error) {
	list, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	for _, e := range list {
		if !strings.HasPrefix(e.Name(), notePrefix) {
			continue
		}
		if rerr := os.Remove(filepath.Join(dir, e.Name())); rerr != nil && err == nil {
			err = rerr
		}
		n++
	}
	return n, err
}

// EndSession makes the notes void that any run directory has of the store in the
// file: for programs that change a store in place.
func EndSession(cow string) error {
	return machine{}.removeSession(cow)
}

// HasSession tells whether a daemon that was killed left the store in the file in
// the middle of its work: the next one may find writes in its note that are not
// in the store.
func HasSession(cow string) (bool, error) {
	session, err := machine{}.session(cow)
	return session != "", err
}

// noteFile is a note as a file.
type noteFile interface {
	bytes() []byte
	linked() bool // somebody else could find it
	close() error // unmaps and removes it
}

// noteHost is what notes need of the machine.
type noteHost interface {
	// file tells which file a COW device is; ok is false for a device that is
	// no file, which has no notes.
	file(cow target.Lower) (path string, dev, inode uint64, ok bool)

	// The session is a mark on the file itself, found by whichever name it is
	// opened.
	session(path string) (string, error)
	setSession(path, session string) error
	removeSession(path string) error

	create(path string) (noteFile, error)
}

// sessionAttr is the extended attribute that holds the session.
const sessionAttr = "user.dmfuse.session"

// machine is the real noteHost.
type machine struct{}

func (machine) file(cow target.Lower) (path string, dev, inode uint64, ok bool) {
	id := cow.ID()
	if id.Kind != blockdev.IDFile {
		return "", 0, 0, false
	}
	var st unix.Stat_t // another file may have its name by now
	ok = unix.Stat(cow.Name(), &st) == nil && st.Dev == id.A && st.Ino == id.B
	return cow.Name(), id.A, id.B, ok
}

func (machine) session(path string) (string, error) {
	var b [64]byte
	n, err := unix.Getxattr(path, sessionAttr, b[:])
	if err != nil {
		if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) {
			err = nil
		}
		return "", err
	}
	return string(b[:n]), nil
}

func (machine) setSession(path, session string) error {
	if err := unix.Setxattr(path, sessionAttr, []byte(session), 0); err != nil {
		return fmt.Errorf("marking %s with the extended attribute %s: %w", path, sessionAttr, err)
	}
	return nil
}

func (machine) removeSession(path string) error {
	err := unix.Removexattr(path, sessionAttr)
	if err == nil || errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return fmt.Errorf("removing the extended attribute %s of %s: %w", sessionAttr, path, err)
}

// mapped is a note in a file.
type mapped struct {
	f   *os.File
	mem []byte
}

// create makes a note with all its space taken, as a page that has none when it
// is first written would be a signal. It takes the place of an older one.
func (machine) create(path string) (_ noteFile, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
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
	if err := takeSpace(f); err != nil {
		return nil, fmt.Errorf("space for the note %s: %w", path, err)
	}
	return mapNote(f)
}

// openMapped maps a note that is there.
func openMapped(path string) (*mapped, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	m, err := mapNote(f)
	if err != nil {
		_ = f.Close()
	}
	return m, err
}

func mapNote(f *os.File) (*mapped, error) {
	mem, err := unix.Mmap(int(f.Fd()), 0, noteBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mapping the note %s: %w", f.Name(), err)
	}
	return &mapped{f, mem}, nil
}

// takeSpace makes f as long as a note, with fallocate or by writing zeros.
func takeSpace(f *os.File) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, noteBytes)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS):
			return err
		}
		_, err = f.WriteAt(make([]byte, noteBytes), 0)
		return err
	}
}

func (m *mapped) bytes() []byte { return m.mem }

func (m *mapped) linked() bool {
	var st unix.Stat_t
	return unix.Fstat(int(m.f.Fd()), &st) == nil && st.Nlink > 0 && st.Size == noteBytes
}

func (m *mapped) close() error {
	if m.linked() {
		if err := os.Remove(m.f.Name()); err != nil {
			_ = m.unmap()
			return err
		}
	}
	return m.unmap()
}

func (m *mapped) unmap() error {
	err := unix.Munmap(m.mem)
	if cerr := m.f.Close(); err == nil {
		err = cerr
	}
	return err
}

// newSession is a random session.
func newSession() (s [16]byte, err error) {
	_, err = rand.Read(s[:])
	return s, err
}

// notePath is the note of a store.
func (o Notes) path(dev, inode uint64) string {
	return filepath.Join(o.Dir, fmt.Sprintf("%s%x-%x", notePrefix, dev, inode))
}

func (o Notes) machine() noteHost {
	if o.host != nil {
		return o.host
	}
	return machine{}
}
