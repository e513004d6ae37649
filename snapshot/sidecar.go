package snapshot

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"golang.org/x/sys/unix"
)

// SidecarSuffix is added to the path of a COW file to get that of its sidecar.
const SidecarSuffix = ".dmfuse"

// sidecarVersion is the version that this program writes and the newest it
// reads.
const sidecarVersion = 1

// Sidecar is what dmfuse knows about a COW file and the kernel's format has no
// place for. It stands beside the file and is never needed to read the data
// (promise 6).
type Sidecar struct {
	Version int    `json:"version"`
	Kind    string `json:"kind"` // "snapshot-store"

	// Name is that of the device when the store was made; empty: not known.
	Name string `json:"name,omitempty"`
	// Inode is st_ino of the COW file itself; 0: not known. Another number means
	// that the sidecar was left beside another file.
	Inode uint64 `json:"inode,omitempty"`
	// Store is the word of the table line: P, PO or N; empty: not known.
	Store string `json:"store,omitempty"`

	// Origin is the device that the store belongs to; nil: not known.
	Origin *SidecarOrigin `json:"origin,omitempty"`
	// ChunkSize is that of the store in sectors; 0: not known.
	ChunkSize uint32 `json:"chunk_sectors,omitempty"`
	// Created is when the store was made; nil: not known.
	Created *time.Time `json:"created,omitempty"`
	// CreatedByUs says that the file was made for this store: removing the
	// snapshot may delete it.
	CreatedByUs bool `json:"created_by_dmfuse,omitempty"`
	// Closed is set when the snapshot was removed and its COW kept; nil: it is
	// open, or that is not known.
	Closed *SidecarClosed `json:"closed,omitempty"`
	// Merging is set while snapshot merge makes the store part of its origin: until
	// the end each of the two alone is half of the data.
	Merging *SidecarMerging `json:"merging,omitempty"`
	// Policies are what table lines cannot say.
	Policies map[string]string `json:"policies,omitempty"`
	// Invalid is set when the snapshot became invalid and the store itself
	// could not be marked.
	Invalid *SidecarInvalid `json:"invalid,omitempty"`
}

// SidecarOrigin tells an origin device from others.
type SidecarOrigin struct {
	Path  string `json:"path"`
	Dev   uint64 `json:"dev,omitempty"`   // st_dev of a regular file
	Inode uint64 `json:"inode,omitempty"` // st_ino of a regular file
	Rdev  uint64 `json:"rdev,omitempty"`  // st_rdev of a block device
	Size  int64  `json:"size_bytes"`
}

// SidecarClosed says how the origin was when the store was closed: what is
// written to it afterwards shows through the store.
type SidecarClosed struct {
	Time        time.Time `json:"time"`
	OriginMtime time.Time `json:"origin_mtime"` // of a regular file, else zero
}

// SidecarInvalid says why and when a snapshot became invalid.
type SidecarInvalid struct {
	Reason string    `json:"reason"`
	Time   time.Time `json:"time"`
}

// SidecarMerging says which device a store is merged into, and since when.
type SidecarMerging struct {
	Device string    `json:"device"`
	Time   time.Time `json:"time"`
}

const sidecarKind = "snapshot-store"

// SidecarPath is the path of the sidecar of a COW file.
func SidecarPath(cow string) string { return cow + SidecarSuffix }

// ReadSidecar reads the sidecar of a COW file. A missing one is
// [fs.ErrNotExist]; one that is damaged, or of a newer version, is
// [blockdev.ErrInvalid].
func ReadSidecar(cow string) (Sidecar, error) {
	var s Sidecar
	path := SidecarPath(cow)
	b, err := os.ReadFile(path)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return Sidecar{}, fmt.Errorf("%w: sidecar %s: %v", blockdev.ErrInvalid, path, err)
	}
	switch {
	case s.Kind != sidecarKind:
		return Sidecar{}, fmt.Errorf("%w: sidecar %s is of kind %q, expected %q", blockdev.ErrInvalid, path, s.Kind, sidecarKind)
	case s.Version < 1 || s.Version > sidecarVersion:
		return Sidecar{}, fmt.Errorf("%w: sidecar %s has version %d, this program knows 1 to %d", blockdev.ErrInvalid, path, s.Version, sidecarVersion)
	}
	return s, nil
}

// WriteSidecar writes the sidecar of a COW file, durably and at once: after a
// crash there is the old one or the new one. Version and kind are filled in. What
// kills left of earlier ones is removed.
func WriteSidecar(cow string, s Sidecar) error {
	s.Version, s.Kind = sidecarVersion, sidecarKind
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	if err := blockdev.ReplaceFile(SidecarPath(cow), append(b, '\n')); err != nil {
		return err
	}
	_ = blockdev.DropUnfinishedOf(SidecarPath(cow)) // what stays takes space and nothing else
	return nil
}

// RemoveSidecar takes the sidecar of a COW file away. A missing one is no error.
func RemoveSidecar(cow string) error {
	path := SidecarPath(cow)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_ = blockdev.DropUnfinishedOf(path)
	return blockdev.SyncPath(filepath.Dir(path))
}

// MarkSidecarInvalid notes in the sidecar of a COW file that its snapshot is
// invalid, keeping what else it says. A sidecar is made where there is none; one
// that cannot be read is replaced. The first reason stays.
func MarkSidecarInvalid(cow, reason string, now time.Time) error {
	s, err := ReadSidecar(cow)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && blockdev.Kind(err) != blockdev.ErrInvalid {
		return err
	}
	var st unix.Stat_t
	if unix.Stat(cow, &st) == nil && s.Inode != st.Ino {
		if s.Inode != 0 { // it was left beside another file
			s = Sidecar{}
		}
		s.Inode = st.Ino
	}
	if s.Invalid != nil {
		return nil
	}
	s.Invalid = &SidecarInvalid{Reason: reason, Time: now.UTC().Truncate(time.Second)}
	return WriteSidecar(cow, s)
}

// cowFile is the path of the COW device if that is a file, which alone has a
// sidecar; empty otherwise. Of one that could not be opened only the word in the
// table is known.
func (s *snapshot) cowFile() string {
	if s.cow != nil {
		switch s.cow.ID().Kind {
		case blockdev.IDBlock, blockdev.IDMapped:
			return ""
		}
		if name := s.cow.Name(); filepath.IsAbs(name) {
			return name
		}
		return ""
	}
	name := s.params.cow
	if st, err := os.Stat(name); err == nil && st.Mode()&os.ModeDevice != 0 {
		return ""
	}
	node := strings.HasPrefix(name, "/dev/") && !strings.HasPrefix(name, "/dev/shm/")
	if !filepath.IsAbs(name) || node {
		return ""
	}
	return name
}

// markSidecar notes beside the COW file that the snapshot is invalid: for a
// store whose header cannot be written any more.
func (s *snapshot) markSidecar(why error) {
	file := s.cowFile()
	if file == "" {
		s.log().Error("nothing on the disk says that the snapshot is invalid: do not use the COW device again")
		s.recordBroken()
		return
	}
	s.sidecar.Lock()
	defer s.sidecar.Unlock()
	if err := MarkSidecarInvalid(file, why.Error(), time.Now()); err != nil {
		s.log().WithError(err).Error("the sidecar of the COW device cannot be marked invalid: do not use the COW device again")
		s.recordBroken()
	}
}

// recordBroken leaves the invalidation to the daemon's own record, where no
// place beside the store could be written: the next restart knows it then, and
// tries again to say it on the disk.
func (s *snapshot) recordBroken() {
	s.unmarked.Store(true)
	if s.env.Record != nil {
		s.env.Record()
	}
}

// Broken tells whether only the daemon knows that the snapshot is invalid.
func (s *snapshot) Broken() bool { return s.unmarked.Load() }

// clearSidecar takes away a mark that was left by another store: the COW file
// was blank and has a new store now.
func (s *snapshot) clearSidecar() {
	file := s.cowFile()
	if file == "" {
		return
	}
	s.sidecar.Lock()
	defer s.sidecar.Unlock()
	side, err := ReadSidecar(file)
	if err != nil || side.Invalid == nil {
		return
	}
	side.Invalid = nil
	if err := WriteSidecar(file, side); err != nil {
		s.log().WithError(err).Warn("the sidecar still says that the snapshot is invalid, which was another store")
	}
}
