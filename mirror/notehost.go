package mirror

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/internal/notefile"
	"github.com/dmfuse/dmfuse/target"
	"golang.org/x/sys/unix"
)

// Notes says where the notes of regions are kept (regionnote.go).
type Notes struct {
	// Dir is where the notes are; empty: there are none, and a mirror with a core
	// log copies everything after a kill.
	Dir string
	// Boot is the id of this boot: after a power cut a note says nothing.
	Boot string

	host    noteHost // nil: the machine; for tests
	stepped func()   // for tests: called after each store to a note
}

const notePrefix = "regions-"

// DropNotes removes the notes in a directory: for a daemon that starts without
// the devices of the last one.
func DropNotes(dir string) error {
	_, err := notefile.Drop(dir, notePrefix, nil)
	return err
}

// noteHost is what notes need of the machine.
type noteHost interface {
	// file tells which file a leg is; ok is false for one that is no file.
	file(leg target.Lower) (path string, dev, inode uint64, ok bool)
	written(path string) (time.Time, error)

	// The mark is on the file itself, found by whichever name it is opened.
	mark(path string) (string, error)
	setMark(path, session string) error
	removeMark(path string) error
}

// markAttr is the extended attribute of a leg that holds the session.
const markAttr = "user.dmfuse.mirror"

// machine is the real noteHost.
type machine struct{}

func (machine) file(leg target.Lower) (path string, dev, inode uint64, ok bool) {
	return blockdev.FileOf(leg)
}

func (machine) written(path string) (time.Time, error) {
	st, err := os.Stat(path)
	if err != nil {
		return time.Time{}, err
	}
	return st.ModTime(), nil
}

func (machine) mark(path string) (string, error)   { return notefile.Mark(path, markAttr) }
func (machine) setMark(path, session string) error { return notefile.SetMark(path, markAttr, session) }
func (machine) removeMark(path string) error       { return notefile.RemoveMark(path, markAttr) }

func (o Notes) machine() noteHost {
	if o.host != nil {
		return o.host
	}
	return machine{}
}

// path is the note of a mirror with that first leg.
func (o Notes) path(first noteLeg) string {
	return filepath.Join(o.Dir, fmt.Sprintf("%s%x-%x-%x", notePrefix, first.dev, first.inode, first.offset))
}

// noteWanted tells whether a mirror has a note: it is the memory of a core log
// that writes.
func (m *mirror) noteWanted() bool {
	return m.o.Notes.Dir != "" && !m.params.disk && m.keep == nil && !m.env.ReadOnly && noteSize(m.dirty.n) <= noteLimit
}

// noteID is the identity of the mirror's note, without a session, and the files
// of its legs; ok is false if some leg is no file.
func (m *mirror) noteID() (id noteID, paths []string, ok bool) {
	sum := sha256.Sum256([]byte(m.o.Notes.Boot))
	id = noteID{region: m.region, length: m.length}
	copy(id.boot[:], sum[:])
	for _, l := range m.legs {
		path, dev, inode, ok := m.o.Notes.machine().file(l.dev)
		if !ok {
			return id, nil, false
		}
		id.legs = append(id.legs, noteLeg{dev, inode, uint64(l.offset)})
		paths = append(paths, path)
	}
	return id, paths, true
}

// claimLegs makes every note void that anybody has of a leg, save the one that
// this mirror goes on with: from now on the legs change.
func (m *mirror) claimLegs() error {
	if m.env.ReadOnly {
		return nil
	}
	h := m.o.Notes.machine()
	if m.env.Restoring && !m.env.Waiting && !m.noted && m.noteWanted() {
		m.findNote()
	}
	m.mu.Lock()
	note := m.dirty.note
	m.mu.Unlock()
	own := note.mark()
	for _, l := range m.legs {
		path, _, _, ok := h.file(l.dev)
		if !ok {
			continue
		}
		mark, err := h.mark(path)
		if mark != own && err == nil && !m.o.Hooks.NoNoteMarks {
			m.mu.Lock()
			note.void() // somebody else has used the leg
			m.mu.Unlock()
			err = h.removeMark(path)
		}
		if err != nil && !m.env.Restoring {
			return err
		}
		if err != nil {
			m.log().WithError(err).Error("the mark of a note stays on a leg")
		}
	}
	return nil
}

// findNote takes the note that a daemon which was killed has left, if it fits
// exactly.
func (m *mirror) findNote() {
	id, paths, ok := m.noteID()
	if !ok {
		return
	}
	f, err := notefile.Open(m.o.Notes.path(id.legs[0]), noteSize(m.dirty.n))
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var note *regionNote
	if err == nil {
		note, err = readRegionNote(f, id, m.dirty.n)
		for _, p := range paths {
			if err == nil {
				err = m.fits(note, p)
			}
		}
		if err != nil {
			_ = f.Unmap()
		}
	}
	if err != nil {
		m.log().WithError(err).Warn("the note of the regions does not count: everything is copied")
		return
	}
	note.stepped = m.o.Notes.stepped
	m.mu.Lock()
	m.dirty.note = note
	m.mu.Unlock()
}

// fits tells why a note says nothing of a leg: somebody used it since.
func (m *mirror) fits(note *regionNote, leg string) error {
	h := m.o.Notes.machine()
	mark, err := h.mark(leg)
	if err != nil {
		return err
	}
	if mark != note.mark() && !m.o.Hooks.NoNoteMarks {
		return fmt.Errorf("%s was used since", leg)
	}
	written, err := h.written(leg)
	if err != nil {
		return err
	}
	if last := time.Unix(int64(note.vals[wordTime])+1, 0); written.Sub(last) > noteSlack && !m.o.Hooks.NoNoteTime {
		return fmt.Errorf("%s was written to since, at %v", leg, written.Format(time.DateTime))
	}
	return nil
}

// startNote takes the regions that the note of a killed daemon has in sync, or
// begins a note. The legs are not used yet.
func (m *mirror) startNote() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.noted || !m.noteWanted() {
		return
	}
	m.noted = true
	if note := m.dirty.note; !note.lost() {
		if !m.o.Hooks.NoNoteFlush {
			note.settle()
		}
		for r := range m.dirty.n {
			m.dirty.setSync(r, note.clean(r))
		}
		m.log().Infof("%d of %d regions were in sync when the daemon was killed", m.dirty.count.Load(), m.dirty.n)
		return
	}
	note, err := m.newNote()
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		m.log().WithError(err).Warn("there is no note of the regions: after a kill everything is copied")
	}
	if note != nil {
		m.dirty.note = note
	}
}

// newNote makes a note of what is in sync now. The marks come last: with them it
// counts.
func (m *mirror) newNote() (*regionNote, error) {
	id, paths, ok := m.noteID()
	if !ok {
		return nil, nil
	}
	id.session = notefile.NewSession()
	f, err := notefile.Create(m.o.Notes.path(id.legs[0]), noteSize(m.dirty.n))
	if err != nil {
		return nil, err
	}
	note, err := newRegionNote(f, id, m.dirty.n, func(r Region) bool { return m.dirty.inSync(r) && !m.differs[r] })
	note.stepped = m.o.Notes.stepped
	if err == nil {
		err = f.Place()
	}
	for _, p := range paths {
		if err == nil {
			err = m.o.Notes.machine().setMark(p, note.mark())
		}
	}
	if err != nil {
		note.void()
		m.removeMarks(note)
		return nil, err
	}
	return note, nil
}

// withNote does something with the note, which is nil with a log on a device.
func (m *mirror) withNote(do func(note *regionNote)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	do(m.dirty.note)
}

// beginFlush notes that all legs are about to be flushed. What it returns is given
// to endFlush, if that ended well.
func (m *mirror) beginFlush() (number uint64) {
	m.withNote(func(note *regionNote) { number = note.beginFlush() })
	return number
}

func (m *mirror) endFlush(number uint64) {
	m.withNote(func(note *regionNote) { note.endFlush(number) })
}

// dropNote is the end of the mirror.
func (m *mirror) dropNote() {
	m.mu.Lock()
	note := m.dirty.note
	m.dirty.note = nil
	note.void()
	m.mu.Unlock()
	if note.mark() != "" {
		m.removeMarks(note)
	}
}

// removeMarks takes the marks of a note off the legs, where no other took their
// place.
func (m *mirror) removeMarks(note *regionNote) {
	h := m.o.Notes.machine()
	for _, l := range m.legs {
		path, _, _, ok := h.file(l.dev)
		if !ok {
			continue
		}
		mark, err := h.mark(path)
		if err == nil && mark == note.mark() {
			err = h.removeMark(path)
		}
		if err != nil {
			m.log().WithError(err).Warn("the mark of a note stays on a leg")
		}
	}
}
