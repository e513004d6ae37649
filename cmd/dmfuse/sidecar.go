package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// sidecar is what is kept beside a COW file, as FILE.dmfuse: what the kernel's
// format has no room for. It is never needed to read the data.
type sidecar struct {
	Version        int           `json:"version"`
	Kind           string        `json:"kind"` // "snapshot"
	Name           string        `json:"name"` // of the device, when it was made
	Origin         sidecarOrigin `json:"origin"`
	ChunkSizeBytes int64         `json:"chunk_size_bytes"`
	Store          string        `json:"store"`   // P, PO or N
	Created        time.Time     `json:"created"` // when the snapshot was taken
	// Inode of the COW file that snapshot create made; 0: it was there before.
	// Only that file is deleted with the snapshot.
	MadeInode uint64 `json:"made_inode,omitempty"`
}

// sidecarOrigin says which origin a store belongs to.
type sidecarOrigin struct {
	Path      string `json:"path"`
	Inode     uint64 `json:"inode,omitempty"` // of a regular file
	SizeBytes int64  `json:"size_bytes"`
}

const sidecarVersion = 1

// sidecarPath is the sidecar of a file.
func sidecarPath(file string) string { return file + ".dmfuse" }

// readSidecar reads the sidecar of a COW file; false when there is none.
func readSidecar(file string) (sidecar, bool, error) {
	var s sidecar
	b, err := os.ReadFile(sidecarPath(file))
	if errors.Is(err, os.ErrNotExist) {
		return s, false, nil
	}
	if err != nil {
		return s, false, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, false, fmt.Errorf("%s is damaged: %w", sidecarPath(file), err)
	}
	if s.Version != sidecarVersion {
		return s, false, fmt.Errorf("%s has version %d; this dmfuse knows version %d", sidecarPath(file), s.Version, sidecarVersion)
	}
	return s, true, nil
}

// writeSidecarFile puts a sidecar in place: made, synced, renamed, and the
// directory synced.
func writeSidecarFile(file string, s sidecar) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	path := sidecarPath(file)
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-")
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(filepath.Dir(path))
}

// writeSidecar writes the sidecar of a new COW file. Devices have none.
func (c *cowFile) writeSidecar(b baseOf, name string) error {
	if c.place.block || c.place.device != nil {
		return nil
	}
	s := sidecar{
		Version: sidecarVersion, Kind: "snapshot", Name: name, ChunkSizeBytes: c.chunk, Store: c.store, Created: time.Now().UTC(),
		Origin: sidecarOrigin{Path: b.lower.path, SizeBytes: b.size},
	}
	if b.lower.device == nil && !b.lower.block {
		s.Origin.Inode = b.lower.stat.Ino
	}
	if c.created {
		made, err := fileAt(c.path)
		if err != nil {
			return err
		}
		s.MadeInode = made.stat.Ino
	}
	path := sidecarPath(c.path)
	old, err := os.ReadFile(path)
	if err == nil && !c.wipe {
		c.undos = append(c.undos, func() error { return os.WriteFile(path, old, 0o600) })
	} else {
		c.undos = append(c.undos, func() error { return os.Remove(path) })
	}
	if err := writeSidecarFile(c.path, s); err != nil {
		return fmt.Errorf("the sidecar of the COW cannot be written: %w", err)
	}
	return nil
}

// belongsTo says why a store with this sidecar does not belong to an origin;
// empty when it does, as far as one can tell.
func (s sidecar) belongsTo(b baseOf) string {
	switch {
	case s.Origin.SizeBytes != b.size:
		return fmt.Sprintf("it was made for an origin of %d bytes (%s), but %s has %d", s.Origin.SizeBytes, s.Origin.Path, b.lower.path, b.size)
	case b.lower.device != nil || b.lower.block || s.Origin.Inode == 0:
		if s.Origin.Path != b.lower.path {
			return fmt.Sprintf("it was made for the origin %s, not for %s", s.Origin.Path, b.lower.path)
		}
	case s.Origin.Inode != b.lower.stat.Ino && s.Origin.Path == b.lower.path:
		return fmt.Sprintf("%s is another file than the one it was made for (inode %d then, %d now)", b.lower.path, s.Origin.Inode, b.lower.stat.Ino)
	case s.Origin.Inode != b.lower.stat.Ino:
		return fmt.Sprintf("it was made for the origin %s, not for %s", s.Origin.Path, b.lower.path)
	}
	return ""
}
