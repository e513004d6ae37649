package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/internal/notefile"
	"github.com/dmfuse/dmfuse/target"
)

// takeNote brings a store that was just opened up to its note, if the daemon
// before was killed and left one that fits exactly (promise 3), and makes every
// note void that anybody has of the store: from now on it changes.
//
// A second kill meanwhile costs nothing: the note says what is on its way.
func (s *snapshot) takeNote(st *persistent, usable bool, t *exceptions) error {
	h := s.group.o.Notes.machine()
	path, dev, inode, ok := h.file(s.cow)
	if !ok || s.params.damaged || !canWrite(s.cow) {
		return nil
	}
	var failed error
	if s.group.o.Notes.Dir != "" {
		note := s.group.o.Notes.path(dev, inode)
		if s.env.Restoring && usable {
			failed = s.applyNote(note, path, noteID{boot: bootMark(s.group.o.Notes.Boot), dev: dev, inode: inode, chunk: uint32(st.chunk)}, st, t)
		}
	}
	if failed != nil {
		return failed
	}
	// The mark first: with it and without a note something would seem to be missing.
	if err := h.removeSession(path); err != nil {
		if !s.env.Restoring {
			return err
		}
		s.log().WithError(err).Error("the mark of a session stays on the store")
	}
	if s.group.o.Notes.Dir != "" {
		if err := os.Remove(s.group.o.Notes.path(dev, inode)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log().WithError(err).Warn("a note that is of no more use stays")
		}
	}
	return nil
}

// applyNote commits what the note has and the store lacks. A note that does not
// fit changes nothing; that writes are lost with it is told to the next flush. The
// error is that of the commit.
func (s *snapshot) applyNote(file, cow string, want noteID, st *persistent, t *exceptions) error {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		s.missNote(cow)
		return nil
	}
	var n noted
	if err == nil {
		n, err = readNote(b)
	}
	if err == nil && n.base.generation == 0 {
		return nil // nothing was answered with it
	}
	var es []exception
	if err == nil {
		es, err = s.fits(n, cow, want, st, t)
	}
	if err != nil {
		if len(n.records) > 0 || n.base.generation == 0 {
			s.early.lost = fmt.Errorf("%w: the writes of the last moment before the kill are lost: %v", blockdev.ErrIO, err)
			which := fmt.Sprintf("up to %d chunks", len(n.records))
			if len(n.records) == 0 { // it could not be read
				which = "chunks"
			}
			s.log().WithError(err).Errorf("the note of the store does not count, and %s that were written last are as before", which)
		}
		return nil
	}
	if len(es) == 0 {
		return nil
	}
	x, err := s.openRecovery(file, n)
	if err == nil {
		defer func() { _ = x.file.(mapped).f.Unmap() }()
		err = x.begin(n.records[len(n.records)-1].ticket + 1)
	}
	if err != nil {
		s.log().WithError(err).Warn("the note does not say what is on its way into the store; it is committed all the same")
	}
	for _, e := range es {
		st.reserve(e.new)
	}
	st.nextFree = st.skipArea(st.nextFree)
	st.allotted += uint64(len(es))
	if _, err := st.commit(s.cow, es); err != nil {
		return fmt.Errorf("committing what the note has: %w", err)
	}
	t.insert(es)
	if x != nil { // nothing is missed when the mark goes before the note
		_ = x.rebase(n.records[len(n.records)-1].ticket+1, st.entries(), st.sum)
	}
	s.log().Infof("%d chunks that the daemon or worker before had answered and not committed are committed", len(es))
	return nil
}

// missNote says that the store has the mark of a session of this boot, or was put in
// the place of another, and there is no note.
func (s *snapshot) missNote(cow string) {
	mark, err := s.group.o.Notes.machine().session(cow)
	side, serr := ReadSidecar(cow)
	why := ""
	switch {
	case err == nil && mark != "" && !ofOtherBoot(mark, s.group.o.Notes.Boot):
		why = "its note is gone, or it is a copy"
	case serr == nil && !s.sidecarFits(side):
		why = "it is another file than the one that was in use"
	default:
		return
	}
	s.early.lost = fmt.Errorf("%w: what was written last may not be in %s: %s", blockdev.ErrIO, cow, why)
	s.log().WithError(s.early.lost).Error("writes of the last moment before the kill may be lost")
}

// openRecovery maps a note that was read, so that what becomes of it can be noted.
func (s *snapshot) openRecovery(file string, n noted) (*note, error) {
	f, err := notefile.Open(file, noteBytes)
	if err != nil {
		return nil, err
	}
	x := &note{file: mapped{f}, mem: f.Bytes(), id: n.id, seed: n.id.seed(), base: n.base}
	if watch := s.group.o.Notes.watch; watch != nil {
		x.stepped = func() { watch(x.mem) }
	}
	return x, nil
}

// canWrite tells whether a device is open for writing, as far as it says.
func canWrite(d target.Lower) bool {
	w, ok := d.(interface{ Writable() bool })
	return !ok || w.Writable()
}

// fits judges a note. What it lists must make sense beside what the store has.
func (s *snapshot) fits(n noted, cow string, want noteID, st *persistent, t *exceptions) ([]exception, error) {
	session, err := s.group.o.Notes.machine().session(cow)
	if err != nil {
		return nil, fmt.Errorf("the mark of the store: %w", err)
	}
	if s.group.o.Hooks.NoNoteSession {
		session = n.id.mark()
	}
	want.session = n.id.session
	switch {
	case n.id.boot != want.boot:
		return nil, fmt.Errorf("%w: the note is of another boot", blockdev.ErrInvalid)
	case n.id != want:
		return nil, fmt.Errorf("%w: the note is of another store", blockdev.ErrInvalid)
	case session != n.id.mark():
		return nil, fmt.Errorf("%w: the store was used since", blockdev.ErrInvalid)
	}
	left, err := n.left(st.entries(), st.sum)
	if err != nil {
		return nil, err
	}
	var es []exception
	old, new := map[Chunk]bool{}, map[Chunk]bool{}
	chunks := st.chunksIn(s.cow.Size())
	origin := Chunk((s.size() + st.bytes() - 1) >> st.shift)
	buf := make([]byte, min(st.bytes(), sumBytes))
	for _, r := range left {
		e := r.exception
		_, _, had := t.find(e.old)
		if had || old[e.old] || new[e.new] || e.old >= origin || e.new >= chunks || e.new < st.nextFree || st.isArea(e.new) {
			return nil, fmt.Errorf("%w: the note has chunk %d at chunk %d of the COW device, which cannot be", blockdev.ErrInvalid, e.old, e.new)
		}
		old[e.old], new[e.new] = true, true
		if r.data != 0 && st.bytes() <= sumBytes && !s.group.o.Hooks.NoNoteData {
			b := buf[:s.sourceEnd(st.offset(e.old+1))-st.offset(e.old)]
			if err := readFull(s.cow, b, st.offset(e.new)); err != nil {
				return nil, err
			}
			if sumData(b) != r.data {
				return nil, fmt.Errorf("%w: chunk %d holds other data than was answered: another file was copied over the store", blockdev.ErrInvalid, e.old)
			}
		}
		es = append(es, e)
	}
	return es, nil
}
