package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/snapshot"
	"golang.org/x/sys/unix"
)

// cowFile is the COW of a snapshot that is being made: what was chosen, and how
// to take back what was done for it.
type cowFile struct {
	path    string
	place   place // where it exists already
	exists  bool
	size    int64 // bytes it is to have
	chunk   int64 // bytes
	store   string
	policy  []string // KEY=VALUE: what a table line cannot say; kept in the sidecar
	wipe    bool     // holds something that is to go (--force)
	damaged bool     // open what can be read of a damaged store
	created bool     // made by make, or by an earlier snapshot create that did not finish

	undos []func() error // what make and writeSidecar did, newest last
	claim *os.File       // has the lock of a COW file that is being made; see close
}

// cowWish is what the user said of the COW.
type cowWish struct {
	path     string // --cow, empty for the default
	dir      string // --cow-dir, empty for the folder of the origin
	size     int64  // --cow-size in bytes, 0 for one that never overflows
	chunk    int64  // bytes
	limit    int64  // --cow-limit in bytes, 0 for none
	overflow string // --overflow, empty for the default
	temp     bool   // --temporary
	force    bool
}

// isDevice tells whether the COW is a device, which cannot grow and has no
// sidecar.
func (c *cowFile) isDevice() bool { return c.exists && (c.place.block || c.place.device != nil) }

// check finds what is wrong with the wish itself.
func (w cowWish) check() error {
	if err := checkChunkSize(w.chunk); err != nil {
		return fail(exitUsage, err, "")
	}
	if w.path != "" && w.dir != "" {
		return usagef("--cow and --cow-dir both say where the COW is: give one of them")
	}
	_, _, err := w.storeAndPolicy(true, false)
	return err
}

// storeAndPolicy are the store of a table line and the policies that do what was
// wished. full says that the COW can never overflow as it is, fixed that it is a
// device and cannot grow.
func (w cowWish) storeAndPolicy(full, fixed bool) (store string, policy []string, err error) {
	o := w.overflow
	switch {
	case o == "" && w.limit != 0:
		o = "grow"
	case o == "" && fixed: // as the kernel does it: a device has no place for policies
	case o == "" && full:
		o = "grow"
	case o == "" && w.temp:
		o = "invalidate"
	case o == "":
		o = "readonly"
	}
	switch o {
	case "", "invalidate", "readonly", "pause":
		if w.limit != 0 {
			return "", nil, usagef("--cow-limit is how far a COW grows: with --overflow %s it does not", o)
		}
	case "grow":
		if fixed {
			return "", nil, usagef("--overflow grow: a device cannot grow; a COW file can, or use --overflow pause and make the device larger when it is full")
		}
		if w.limit != 0 && w.limit < w.size {
			return "", nil, usagef("--cow-limit %s is less than --cow-size %s", formatSize(w.limit), formatSize(w.size))
		}
	default:
		return "", nil, usagef("--overflow %s: expected grow, pause, readonly or invalidate", o)
	}
	if o != "" {
		policy = append(policy, "overflow="+o)
	}
	if w.limit != 0 {
		policy = append(policy, fmt.Sprintf("limit=%d", w.limit))
	}
	switch {
	case w.temp && o == "readonly":
		return "", nil, usagef("--overflow readonly is not possible with --temporary: such a store becomes invalid when it is full")
	case w.temp:
		store = "N"
	case o == "readonly" || !full && (o == "" || o == "grow"):
		store = "PO"
	default:
		store = "P"
	}
	_, err = snapshot.ParsePolicies(policy, store)
	return store, policy, err
}

// planCow chooses the COW for a snapshot called name of an origin and checks
// that it can be one. Nothing is changed. file is the lowest regular file of
// the origin, if there is one.
func (s *session) planCow(w cowWish, name string, origin place, size int64, file string) (*cowFile, error) {
	c := &cowFile{path: w.path, chunk: w.chunk}
	switch {
	case w.dir != "":
		c.path = filepath.Join(w.dir, name+".cow")
	case w.path == "" && file == "":
		return nil, fail(exitUsage, fmt.Errorf("%s is on no regular file, so there is no place beside it for the COW", origin.what()), "say where it goes: --cow FILE or --cow-dir DIR")
	case w.path == "":
		c.path = file + "." + name + ".cow"
	}
	if err := s.findCow(c); err != nil {
		return nil, err
	}
	if err := checkChunkSize(w.chunk, origin.blockSize, c.place.blockSize); err != nil {
		return nil, fail(exitUsage, err, "")
	}
	err := checkDir(c.path, "COW")
	if c.exists {
		err = s.checkCow(c, origin, w.force)
	}
	if err != nil {
		return nil, err
	}
	full, err := cowSizeFor(size, w.chunk, w.temp)
	if err != nil && w.size == 0 && w.limit == 0 {
		return nil, err
	}
	return c, c.choose(w, full)
}

// findCow looks whether the COW exists.
func (s *session) findCow(c *cowFile) error {
	p, err := s.find(c.path)
	if err == nil {
		c.place, c.exists, c.path = p, true, p.path
		return nil
	}
	if !errors.Is(err, os.ErrNotExist) && exitCode(err) != exitMissing {
		return err
	}
	c.path, err = cleanAbs(c.path)
	if s.c != nil && within(s.v.Mount, c.path) {
		return failf(exitMissing, "%s is in the mount of the daemon, where files cannot be made; no device has that name", c.path)
	}
	return err
}

// choose settles size and store. full is the size that never overflows.
func (c *cowFile) choose(w cowWish, full int64) error {
	least := minCowChunks * w.chunk
	if w.temp {
		least = w.chunk
	}
	fixed := c.isDevice()
	switch {
	case fixed && w.size != 0:
		return usagef("--cow-size: %s has the size it has, %s", c.place.what(), formatSize(c.place.size))
	case fixed:
		c.size = c.place.size
	case w.size != 0:
		c.size = max(w.size-w.size%w.chunk, c.place.size)
	case c.place.size > 0 && !c.wipe:
		c.size = c.place.size
	case w.limit != 0:
		if w.limit < least {
			return usagef("--cow-limit %s is too small: with chunks of %s a COW needs %s at least", formatSize(w.limit), formatSize(w.chunk), formatSize(least))
		}
		c.size = least
		if full > 0 {
			c.size = max(least, min(full, w.limit-w.limit%w.chunk))
		}
	default:
		c.size = full
	}
	if c.size < least {
		return usagef("a COW of %s is too small: with chunks of %s it needs %s at least", formatSize(c.size), formatSize(w.chunk), formatSize(least))
	}
	var err error
	c.store, c.policy, err = w.storeAndPolicy(full > 0 && c.size >= full, fixed)
	return err
}

// checkDir refuses a new file, a COW or a log, whose directory is not there.
func checkDir(path, what string) error {
	dir := filepath.Dir(path)
	switch fi, err := os.Stat(dir); {
	case errors.Is(err, os.ErrNotExist):
		return fail(exitFailed, fmt.Errorf("the %s %s cannot be made: there is no directory %s", what, path, dir), "make it first: mkdir "+shellQuote(dir))
	case err != nil:
		return err
	case !fi.IsDir():
		return failf(exitFailed, "the %s %s cannot be made: %s is no directory", what, path, dir)
	}
	return nil
}

// checkCow refuses an existing COW that is the origin, is in use, or holds
// something.
func (s *session) checkCow(c *cowFile, origin place, force bool) error {
	p := c.place
	if p.device != nil && origin.device != nil && p.device.Name == origin.device.Name ||
		p.device == nil && origin.device == nil && sameFile(p.path, origin) {
		return usagef("%s is the origin and cannot be the COW of its own snapshot", p.what())
	}
	for _, u := range s.usesOf(p) {
		return fail(exitBusy, fmt.Errorf("%s cannot be a COW: the device %s uses it as its %s", p.what(), u.device.Name, u.role), "choose another file with --cow")
	}
	users, err := s.writersOf(p)
	if err != nil {
		return err
	}
	if len(users) > 0 {
		return busy(p, users, "choose another file with --cow")
	}
	empty, err := isBlank(p)
	if err != nil {
		return err
	}
	if now, err := fileAt(p.path); err == nil && p.device == nil && now.size != p.size {
		return c.lost() // between the two looks
	}
	if !empty && !force {
		what := "data"
		if found, err := p.probe(); err == nil {
			what = found.describe()
		}
		return fail(exitBusy, fmt.Errorf("%s is not empty: it holds %s", p.what(), what),
			"choose another file with --cow, or overwrite it with --force; a snapshot store is opened with: dmfuse snapshot open")
	}
	c.wipe = !empty
	side, ok, err := readSidecar(p)
	c.created = err == nil && ok && side.CreatedByUs
	return nil
}

// isBlank says whether a place holds nothing: a file without data, or a device
// whose beginning and end are zeros.
func isBlank(p place) (bool, error) {
	f, err := os.Open(p.path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	if p.device == nil && !p.block {
		_, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return true, nil // no data anywhere
		}
		return false, err
	}
	for _, at := range []int64{0, max(0, p.size-blankLook)} {
		b := make([]byte, min(blankLook, p.size))
		if _, err := f.ReadAt(b, at); err != nil && !errors.Is(err, io.EOF) {
			return false, err
		}
		if !isZero(b) {
			return false, nil
		}
	}
	return true, nil
}

// blankLook is how much of each end of a device is looked at.
const blankLook = 1 << 20

// make brings the COW into being, durably, before anything is suspended. A file is
// ours alone from then on, until close. One that exists is changed only if taken,
// which looks again who uses it, finds nobody.
func (c *cowFile) make(taken func() error) error {
	if !c.exists {
		return c.makeNew()
	}
	f, err := os.OpenFile(c.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if c.isDevice() {
		defer f.Close()
	} else if err := c.take(f); err != nil {
		return err
	} else if err := c.stillAsPlanned(); err != nil {
		return err
	}
	if err := taken(); err != nil {
		return err
	}
	switch {
	case !c.isDevice():
		err = c.resize(f)
	case c.wipe:
		err = zeroStart(f, 2*c.chunk) // header and first metadata area
	}
	if err != nil {
		return fmt.Errorf("the COW %s cannot be prepared: %w", c.path, err)
	}
	return f.Sync()
}

// take claims a COW file for the snapshot that is being made. The lock is one that
// nobody else takes: not the daemon, nor qemu.
func (c *cowFile) take(f *os.File) error {
	c.claim = f
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return c.lost()
	}
	return err
}

// lost is what a command says that comes second with a COW.
func (c *cowFile) lost() error {
	return fail(exitBusy, fmt.Errorf("the COW %s has just been made for another snapshot", c.path), "see it with: dmfuse snapshot ls; or choose another file with --cow")
}

// stillAsPlanned refuses a file that became another since it was looked at.
func (c *cowFile) stillAsPlanned() error {
	now, err := fileAt(c.path)
	if err != nil {
		return err
	}
	was, is := c.place.stat, now.stat
	if is.Ino != was.Ino || is.Dev != was.Dev || is.Size != was.Size || is.Mtim != was.Mtim {
		return c.lost()
	}
	if blank, err := isBlank(now); err != nil || blank || c.wipe {
		return err
	}
	return c.lost()
}

// close gives the claim back, when the snapshot is made or all is undone.
func (c *cowFile) close() {
	if c.claim != nil {
		_ = c.claim.Close() // read from and written to before
		c.claim = nil
	}
}

// resize gives an existing file its size, without its old data.
func (c *cowFile) resize(f *os.File) error {
	if c.wipe {
		if err := f.Truncate(0); err != nil {
			return err
		}
	}
	if c.size == c.place.size && !c.wipe {
		return nil
	}
	old := c.place.size
	if !c.wipe {
		c.undos = append(c.undos, func() error { return os.Truncate(c.path, old) })
	}
	return sized(f, c.size)
}

// makeNew makes the file: sparse, for its owner alone.
func (c *cowFile) makeNew() error {
	f, err := os.OpenFile(c.path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	switch {
	case errors.Is(err, os.ErrExist):
		return c.lost()
	case err != nil:
		return fmt.Errorf("the COW cannot be made: %w", err)
	}
	if err := c.take(f); err != nil {
		return err // who has it has seen an empty file, and uses it
	}
	c.created = true
	c.undos = append(c.undos, func() error { return os.Remove(c.path) })
	if err := sized(f, c.size); err != nil {
		return fmt.Errorf("the COW %s cannot be made: %w", c.path, err)
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return blockdev.SyncPath(filepath.Dir(c.path))
}

// sized sets the size of a file, and explains a limit of its file system.
func sized(f *os.File, size int64) error {
	err := f.Truncate(size)
	if errors.Is(err, unix.EFBIG) {
		return fail(exitFailed, fmt.Errorf("its file system cannot hold a file of %s: %w", formatSize(size), err), "let it grow from a smaller size with --cow-size SIZE --overflow grow, or give another place with --cow")
	}
	return err
}

// zeroStart writes zeros over the first n bytes.
func zeroStart(f *os.File, n int64) error {
	b := make([]byte, min(n, 1<<20))
	for at := int64(0); at < n; at += int64(len(b)) {
		if _, err := f.WriteAt(b[:min(int64(len(b)), n-at)], at); err != nil {
			return err
		}
	}
	return nil
}

// undo takes back what was done for the COW, newest first. The data of a file
// that was overwritten by force does not come back.
func (c *cowFile) undo() error {
	var errs []error
	for i := len(c.undos) - 1; i >= 0; i-- {
		if err := c.undos[i](); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	c.undos = nil
	return errors.Join(errs...)
}
