package snapshot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/internal/notefile"
	"github.com/dmfuse/dmfuse/target"
)

// Notes says where the notes of stores are kept (note.go).
type Notes struct {
	// Dir is where the notes are; empty: there are none, and every write is
	// committed before it is answered.
	Dir string
	// Boot is the id of this boot: after a power cut a note says nothing.
	Boot string

	// Tables says that the tables of large stores are saved here, too: for the
	// workers of a keeper (saved.go).
	Tables bool

	savedMin uint64                 // for tests: saved from so many exceptions on
	host     noteHost               // nil: the machine; for tests
	lazy     bool                   // for tests: where nobody has said so, too
	watch    func([]byte)           // for tests: sees a note after each store to it
	after    func() <-chan struct{} // for tests: when answered writes are committed; nil: a timer
}

const notePrefix = "note-"

// DropNotes removes the notes in a directory, and tells how many there were: for
// a daemon that starts without the devices of the last one, and for what a
// restart has left.
func DropNotes(dir string) (n int, err error) {
	if err := notefile.DropUnplaced(dir, notePrefix); err != nil {
		return 0, err
	}
	return notefile.Drop(dir, notePrefix, nil)
}

// EndSession makes the notes and saved tables void that any run directory has of
// the store in the file: for programs that change a store in place.
func EndSession(cow string) error {
	return errors.Join(machine{}.removeSession(cow), notefile.RemoveMark(cow, savedAttr))
}

// HasSession tells whether a daemon that was killed left the store in the file in
// the middle of its work: the next one may find writes in its note that are not
// in the store. After a power cut there are none.
func HasSession(cow string) (bool, error) {
	mark, err := machine{}.session(cow)
	if err != nil || mark == "" {
		return false, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return true, nil
	}
	return !ofOtherBoot(mark, strings.TrimSpace(string(boot))), nil
}

// noteFile is a note as a file.
type noteFile interface {
	bytes() []byte
	place() error // others find it from now on
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
	return blockdev.FileOf(cow)
}

func (machine) session(path string) (string, error) { return notefile.Mark(path, sessionAttr) }

func (machine) setSession(path, session string) error {
	return notefile.SetMark(path, sessionAttr, session)
}

func (machine) removeSession(path string) error { return notefile.RemoveMark(path, sessionAttr) }

func (machine) create(path string) (noteFile, error) {
	f, err := notefile.Create(path, noteBytes)
	if err != nil {
		return nil, err
	}
	return mapped{f}, nil
}

// mapped is a note in a file.
type mapped struct{ f *notefile.File }

func (m mapped) bytes() []byte { return m.f.Bytes() }
func (m mapped) place() error  { return m.f.Place() }
func (m mapped) linked() bool  { return m.f.Linked() }

func (m mapped) close() error {
	if m.linked() {
		if err := m.f.Remove(); err != nil {
			_ = m.f.Unmap()
			return err
		}
	}
	return m.f.Unmap()
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
