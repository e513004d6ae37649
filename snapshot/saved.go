package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/internal/notefile"
	"golang.org/x/sys/unix"
)

// The table of a large store is saved for the next worker of the same keeper, which
// then reads only the areas that were not full (savedfile.go). A saved table that
// is not right would be a wrong view of everything, so it counts only where nobody
// can have changed the full areas since it was written:
//
//   - It is in a directory that every keeper clears when it begins (DropSaved), and
//     a worker when it has brought back its devices: what is there is of a store that
//     was in use until this moment.
//   - Only a restart takes it. Whatever else opens the store makes it void, in the
//     daemon of any directory and with the tools that change stores: they take away
//     the mark on the file. The lock on the file keeps them out while a worker lives.
//   - A merge makes it void before it takes the first exception out.
//   - It is of the same boot, file and chunk size, all its checksums are right, it
//     has as many exceptions as the areas, and two areas are looked at.
//
// Anything else ends in reading the store.

// savedAttr is the extended attribute that holds the session of a saved table.
const savedAttr = "user.dmfuse.table"

const (
	savedPrefix = "table-"
	savedNew    = ".new"  // behind the name while it is written
	savedMin    = 1 << 15 // exceptions; fewer are read as fast from the store
)

var errStopped = errors.New("stopped")

// DropSaved removes all saved tables in a directory: for a keeper that begins.
func DropSaved(dir string) error { return dropSaved(dir, nil) }

// DropSaved removes the saved tables of stores that no snapshot of the group has
// open: after a restart, as from now on anybody may change those stores.
func (g *Group) DropSaved() error {
	return dropSaved(g.o.Notes.Dir, func(file string) bool { _, ok := g.tables.Load(strings.TrimSuffix(file, savedNew)); return ok })
}

func dropSaved(dir string, keep func(file string) bool) error {
	_, err := notefile.Drop(dir, savedPrefix, keep)
	return err
}

// keptTable is the saved table of a store that is in use. It belongs to the core.
type keptTable struct {
	group     *Group
	file, cow string
	id        noteID

	saved   atomic.Uint64 // areas in the file
	void    atomic.Bool   // nothing is saved any more
	gone    atomic.Bool   // nor is there anything
	running atomic.Bool   // a save; one at a time
	work    sync.WaitGroup
}

// savedTable is what was saved of a store.
type savedTable struct {
	savedID
	table *exceptions
}

// takeSaved is what openStore begins with. saved is nil if no table was saved or it
// does not count; k is nil if none is to be saved. Then whatever anybody has saved of
// the store is void.
func (s *snapshot) takeSaved() (k *keptTable, saved *savedTable, err error) {
	o := s.group.o.Notes
	path, dev, inode, ok := o.machine().file(s.cow)
	if !ok || o.host != nil || s.params.damaged || !canWrite(s.cow) {
		return nil, nil, nil
	}
	k = &keptTable{group: s.group, cow: path, id: noteID{boot: bootMark(o.Boot), dev: dev, inode: inode}}
	if o.Dir != "" {
		k.file = filepath.Join(o.Dir, fmt.Sprintf("%s%x-%x", savedPrefix, dev, inode))
	}
	wanted := o.Tables && o.Dir != "" && !s.merging
	if wanted && s.env.Restoring {
		saved, err := k.read()
		if err == nil {
			return k, saved, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			s.log().WithError(err).Warn("the saved table does not count, and the whole store is read")
		}
	}
	ferr, err := k.remove()
	switch {
	case err != nil && !s.env.Restoring:
		return nil, nil, err
	case err != nil || ferr != nil:
		s.log().WithError(errors.Join(err, ferr)).Error("a saved table, or the mark of one, stays")
		wanted = false
	}
	if !wanted {
		k = nil
	}
	return k, nil, nil
}

// openWith opens the store with a table that was saved of it; nil: without.
func (s *snapshot) openWith(saved *savedTable, o loading) (st *persistent, t *exceptions, usable bool, err error) {
	t = &exceptions{}
	if saved != nil {
		t, o.full = saved.table, saved.full
		plain := o.check
		o.check = func(n uint64) error {
			if n != uint64(saved.chunk) {
				return fmt.Errorf("%w: the store has chunks of %d sectors, the saved table of %d", blockdev.ErrInvalid, n, saved.chunk)
			}
			return plain(n)
		}
	}
	st, usable, err = openPersistent(s.cow, o, t)
	return st, t, usable, err
}

// read reads the file, if it is of this store.
func (k *keptTable) read() (*savedTable, error) {
	f, err := os.Open(k.file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	mark, err := notefile.Mark(k.cow, savedAttr)
	if err != nil {
		return nil, err
	}
	saved := &savedTable{table: &exceptions{}}
	saved.savedID, err = readSaved(f, saved.table, func(id savedID) error {
		want := k.id
		want.session, want.chunk = id.session, id.chunk
		switch {
		case id.noteID != want:
			return fmt.Errorf("%w: the saved table is of another boot or store", blockdev.ErrInvalid)
		case mark != id.mark() && !k.group.o.Hooks.NoTableCheck:
			return fmt.Errorf("%w: the store was used since its table was saved", blockdev.ErrInvalid)
		}
		return checkChunkSize(uint64(id.chunk))
	})
	if err != nil {
		return nil, err
	}
	areas, count := saved.full.areas, saved.table.count
	if areas == 0 || areas > maxNew || count != areas*newLayout(blockdev.Sector(saved.chunk)).perArea {
		return nil, fmt.Errorf("%w: the saved table has %d exceptions, which are not %d areas of chunks of %d sectors", blockdev.ErrInvalid, count, areas, saved.chunk)
	}
	k.id = saved.noteID
	k.saved.Store(areas)
	k.group.tables.Store(k.file, nil)
	return saved, nil
}

// useTable loads a store of which the full areas are known.
func (s *persistent) useTable(cow blockdev.Device, full fullAreas, t *exceptions) error {
	s.full, s.sum = full, full.sum
	s.nextFree = full.next
	for _, a := range []uint64{0, full.areas - 1} { // a look at two areas
		c := s.layout.area(a)
		if !s.fits(c, cow.Size()) {
			return fmt.Errorf("%w: metadata area %d lies beyond the end of the device", blockdev.ErrInvalid, a)
		}
		b := make([]byte, min(loadWindow, s.areaBytes()))
		if err := readFull(cow, b, s.offset(c)); err != nil {
			return err
		}
		for i := 0; i < len(b); i += entrySize {
			e := getEntry(b[i:])
			if to, _, ok := t.find(e.old); !ok || to != e.new {
				return fmt.Errorf("%w: metadata area %d says %v, the saved table does not", blockdev.ErrInvalid, a, e)
			}
		}
	}
	return s.load(cow, t)
}

// remove makes a saved table void: it takes away the file, and the mark that others
// of any directory need. One of both is enough for this one. Only the owner of the
// store calls it.
func (k *keptTable) remove() (file, mark error) {
	if k.file != "" {
		if file = os.Remove(k.file); errors.Is(file, fs.ErrNotExist) {
			file = nil
		}
		k.group.tables.Delete(k.file)
	}
	if mark = notefile.RemoveMark(k.cow, savedAttr); errors.Is(mark, fs.ErrNotExist) {
		mark = nil // the name leads nowhere any more
	}
	k.id.session = notefile.Session{}
	k.saved.Store(0)
	return file, mark
}

// end makes the saved table void for good, if there is one.
func (k *keptTable) end() error {
	if k == nil || k.gone.Load() {
		return nil
	}
	k.void.Store(true)
	k.work.Wait()
	if file, mark := k.remove(); file != nil && mark != nil {
		return fmt.Errorf("the saved table of the store cannot be made void: %w", errors.Join(file, mark))
	}
	k.gone.Store(true)
	return nil
}

// keepSaved saves the table when enough areas have become full since the last time.
// Whoever commits calls it, when the exceptions of full areas are in the table.
func (s *snapshot) keepSaved(c *core) {
	k := c.kept
	if k == nil || c.disk.rewound || c.disk.unordered || k.void.Load() {
		return
	}
	full, saved := c.disk.full, k.saved.Load()
	least := uint64(savedMin)
	if n := k.group.o.Notes.savedMin; n > 0 {
		least = n
	}
	if full.areas == saved || full.areas*c.perArea < least || full.areas-saved < saved/4 || k.running.Swap(true) {
		return
	}
	k.work.Go(func() {
		defer k.running.Store(false)
		err := k.save(c.table, c.layout, full)
		if err == nil || errors.Is(err, errStopped) {
			return
		}
		k.void.Store(true)
		s.log().WithError(err).Warn("the table of the store is not saved: the next worker reads the store")
	})
}

// save writes the file beside the one that is there, and puts it in its place. A
// kill leaves one of them.
func (k *keptTable) save(t *exceptions, l layout, full fullAreas) (err error) {
	if k.void.Load() { // the store was closed just now
		return errStopped
	}
	if err := k.mark(l); err != nil {
		return err
	}
	if err := k.room(t); err != nil {
		return err
	}
	k.group.tables.Store(k.file, nil)
	tmp := k.file + savedNew
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = writeSaved(f, t, savedID{noteID: k.id, full: full}, l.perArea, k.void.Load)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, k.file)
	}
	if err != nil {
		_ = os.Remove(tmp)
		return err
	}
	k.saved.Store(full.areas)
	return nil
}

// mark puts the mark of a new session on the store, once.
func (k *keptTable) mark(l layout) error {
	if k.id.session != (notefile.Session{}) {
		return nil
	}
	k.id.session, k.id.chunk = notefile.NewSession(), uint32(l.chunk)
	return notefile.SetMark(k.cow, savedAttr, k.id.mark())
}

// room refuses to fill the run directory, which needs space for other things.
func (k *keptTable) room(t *exceptions) error {
	var st unix.Statfs_t
	dir := filepath.Dir(k.file)
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if free, need := uint64(st.Bavail)*uint64(st.Bsize), 2*uint64(t.memory()); free < need {
		return fmt.Errorf("%w: %s has %d bytes left, expected %d for a table", blockdev.ErrNoSpace, dir, free, need)
	}
	return nil
}
