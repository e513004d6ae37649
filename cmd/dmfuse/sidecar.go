package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/snapshot"
	"golang.org/x/sys/unix"
)

// readSidecar reads the sidecar of a COW file; false when there is none, or
// when it was left beside another file.
func readSidecar(p place) (snapshot.Sidecar, bool, error) {
	if p.device != nil || p.block {
		return snapshot.Sidecar{}, false, nil
	}
	s, err := snapshot.ReadSidecar(p.path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, false, nil
	}
	return s, err == nil && (s.Inode == 0 || s.Inode == p.stat.Ino), err
}

// writeSidecar writes the sidecar of a new COW file. Devices have none.
func (c *cowFile) writeSidecar(b baseOf, name string) error {
	if c.place.block || c.place.device != nil {
		return nil
	}
	cow, err := fileAt(c.path)
	if err != nil {
		return err
	}
	now := time.Now().UTC()
	s := snapshot.Sidecar{
		Name: name, Inode: cow.stat.Ino, Store: c.store, ChunkSize: uint32(c.chunk / 512), Created: &now, CreatedByUs: c.created,
		Origin: &snapshot.SidecarOrigin{Path: b.lower.path, Size: b.size},
	}
	if s.Policies, err = snapshot.ParsePolicies(c.policy, c.store); err != nil {
		return err
	}
	switch o := s.Origin; {
	case b.lower.device != nil:
	case b.lower.block:
		o.Rdev = b.lower.stat.Rdev
	default:
		o.Dev, o.Inode = b.lower.stat.Dev, b.lower.stat.Ino
	}
	path := snapshot.SidecarPath(c.path)
	old, err := os.ReadFile(path)
	if err == nil {
		_, err = snapshot.ReadSidecar(c.path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail(exitBusy, fmt.Errorf("%s, where the sidecar of the COW belongs, is something else: %w", path, err), "move it away, or give --cow another name")
	}
	if err == nil && !c.wipe {
		c.undos = append(c.undos, func() error { return blockdev.ReplaceFile(path, old) })
	} else {
		c.undos = append(c.undos, func() error { return snapshot.RemoveSidecar(c.path) })
	}
	if err := snapshot.WriteSidecar(c.path, s); err != nil {
		return fmt.Errorf("the sidecar of the COW cannot be written: %w", err)
	}
	return nil
}

// sidecarProblems lists what the sidecar of a store says against opening it
// with this origin.
func sidecarProblems(p place, b baseOf) []string {
	s, ok, err := readSidecar(p)
	if err != nil {
		return []string{err.Error()}
	}
	if !ok {
		return nil
	}
	var problems []string
	if s.Invalid != nil {
		problems = append(problems, fmt.Sprintf("the snapshot became invalid on %s: %s", s.Invalid.Time.Local().Format(time.DateTime), s.Invalid.Reason))
	}
	if s.Origin != nil {
		if why := otherOrigin(*s.Origin, b); why != "" {
			return append(problems, why)
		}
	}
	if c := s.Closed; c != nil && b.lower.device == nil && !b.lower.block && !mtime(b.lower).Equal(c.OriginMtime) {
		problems = append(problems, fmt.Sprintf("%s was written after the store was closed on %s: what was overwritten then is lost to this snapshot",
			b.lower.path, c.Time.Local().Format(time.DateTime)))
	}
	return problems
}

// otherOrigin says why a store was not made for this origin; empty when it was,
// as far as one can tell.
func otherOrigin(o snapshot.SidecarOrigin, b baseOf) string {
	other := fmt.Sprintf("it was made for the origin %s, not for %s", o.Path, b.lower.path)
	switch file := b.lower.device == nil && !b.lower.block; {
	case o.Size != b.size:
		return fmt.Sprintf("it was made for an origin of %d bytes (%s), but %s has %d", o.Size, o.Path, b.lower.path, b.size)
	case file && o.Inode != 0 && o.Inode != b.lower.stat.Ino && o.Path == b.lower.path:
		return fmt.Sprintf("%s is another file than the one it was made for (inode %d then, %d now)", b.lower.path, o.Inode, b.lower.stat.Ino)
	case file && o.Inode != 0 && o.Inode != b.lower.stat.Ino:
		return other
	case (!file || o.Inode == 0) && o.Path != b.lower.path:
		return other
	}
	return ""
}

// markClosed notes that a store is closed and how its origin was then.
func markClosed(p place, origin place) error {
	s, ok, err := readSidecar(p)
	if err != nil || !ok {
		return err
	}
	s.Closed = &snapshot.SidecarClosed{Time: time.Now().UTC()}
	if origin.device == nil && !origin.block {
		if again, err := fileAt(origin.path); err == nil {
			s.Closed.OriginMtime = mtime(again)
		}
	}
	return snapshot.WriteSidecar(p.path, s)
}

// markOpen takes the note of markClosed away.
func markOpen(p place) error {
	s, ok, err := readSidecar(p)
	if err != nil || !ok || s.Closed == nil {
		return nil // one that cannot be read was reported before
	}
	s.Closed = nil
	return snapshot.WriteSidecar(p.path, s)
}

// mtime is when a file was last written.
func mtime(p place) time.Time {
	return time.Unix(0, unix.TimespecToNsec(p.stat.Mtim)).UTC()
}
