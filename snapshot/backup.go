package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/dmfuse/dmfuse/blockdev"
	"golang.org/x/sys/unix"
)

const (
	backupKind    = "snapshot-store-backup"
	backupVersion = 1

	// maxBackup is more than any backup has: its blocks twice, as base64.
	maxBackup = 8 * repairMax
)

// Backup is what a repair in place changes, so that it can be taken back: the
// blocks before and after, the size, the sidecar.
type Backup struct {
	Version int             `json:"version"`
	Kind    string          `json:"kind"`
	Path    string          `json:"path"`              // of the COW
	Size    int64           `json:"size_bytes"`        // before
	Grown   int64           `json:"grown_to_bytes"`    // 0: the size stayed
	Steps   [][]BlockChange `json:"steps"`             // in the order in which they were made
	Sidecar *Sidecar        `json:"sidecar,omitempty"` // before; nil: the repair leaves it alone
	Sum     string          `json:"sha256"`            // of the rest
}

// Backup is that of a plan for the COW at path.
func (r *Repair) Backup(path string, side *Sidecar) Backup {
	return Backup{Version: backupVersion, Kind: backupKind, Path: path, Size: r.dev.Size(), Grown: r.GrowTo, Steps: r.Steps(), Sidecar: side}
}

func (b Backup) sum() string {
	b.Sum = ""
	text, err := json.Marshal(b)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// WriteBackup writes a backup, durably and whole or not at all. What is there may
// be the only way back to what was, and is never replaced: [os.ErrExist].
func WriteBackup(path string, b Backup) error {
	b.Sum = b.sum()
	text, err := json.Marshal(b)
	if err != nil {
		return err
	}
	return blockdev.CreateFile(path, append(text, '\n'))
}

// ReadBackup reads a backup. One that is damaged is [blockdev.ErrInvalid].
func ReadBackup(path string) (Backup, error) {
	text, err := readRegular(path)
	if err != nil {
		return Backup{}, err
	}
	b, err := decodeBackup(text)
	if err != nil {
		return b, fmt.Errorf("%w: backup %s: %v", blockdev.ErrInvalid, path, err)
	}
	return b, nil
}

// readRegular reads a file that has an end: opening a fifo would wait for ever.
func readRegular(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	switch fi, err := f.Stat(); {
	case err != nil:
		return nil, err
	case !fi.Mode().IsRegular():
		return nil, fmt.Errorf("%w: %s is no regular file", blockdev.ErrInvalid, path)
	case fi.Size() > maxBackup:
		return nil, fmt.Errorf("%w: %s has %d bytes; a backup has %d at most", blockdev.ErrInvalid, path, fi.Size(), maxBackup)
	}
	return io.ReadAll(f)
}

func decodeBackup(text []byte) (b Backup, err error) {
	if err := json.Unmarshal(text, &b); err != nil {
		return Backup{}, err
	}
	switch {
	case b.Kind != backupKind:
		return Backup{}, fmt.Errorf("it is of kind %q, expected %q", b.Kind, backupKind)
	case b.Version != backupVersion:
		return Backup{}, fmt.Errorf("it has version %d, this program knows %d", b.Version, backupVersion)
	case b.Sum != b.sum():
		return Backup{}, fmt.Errorf("its sum is %.12q, expected %.12q: it was damaged", b.Sum, b.sum())
	case len(b.Steps) != len(Repair{}.steps) || b.Size < 0:
		return Backup{}, fmt.Errorf("it has %d steps, expected %d", len(b.Steps), len(Repair{}.steps))
	}
	for _, c := range slices.Concat(b.Steps...) {
		if c.Offset < 0 || c.Offset > b.Size-int64(len(c.Before)) || len(c.Before) != len(c.After) || len(c.Before) == 0 {
			return Backup{}, fmt.Errorf("a change of %d bytes at byte %d, in a store of %d bytes", len(c.Before), c.Offset, b.Size)
		}
	}
	return b, nil
}

// ErrChangedSince means that a store was written after its repair.
var ErrChangedSince = fmt.Errorf("%w: the store was written to since the repair, so that the backup does not fit it any more", blockdev.ErrInvalid)

// Check tells whether the store on dev is as the repair found it, left it, or
// was stopped in: [ErrChangedSince] otherwise.
func (b Backup) Check(dev blockdev.Device) error {
	if size := dev.Size(); size != b.Size && size != b.Grown {
		return fmt.Errorf("%w: it has %d bytes, expected %d", ErrChangedSince, size, b.Size)
	}
	known := map[int64][][]byte{}
	for _, c := range slices.Concat(b.Steps...) {
		for at := 0; at < len(c.Before); at += blockdev.SectorSize {
			end := min(at+blockdev.SectorSize, len(c.Before))
			off := c.Offset + int64(at)
			known[off] = append(known[off], c.Before[at:end], c.After[at:end])
		}
	}
	for off, versions := range known {
		now := make([]byte, len(versions[0]))
		if err := readFull(dev, now, off); err != nil {
			return err
		}
		if !slices.ContainsFunc(versions, func(v []byte) bool { return bytes.Equal(v, now) }) {
			return fmt.Errorf("%w: byte %d", ErrChangedSince, off)
		}
	}
	return nil
}

// Restore takes a repair back, durably, in the reverse order: it can be stopped
// anywhere and done again. truncate cuts the device to a size. What was copied
// to chunks of no use stays there.
func (b Backup) Restore(dev blockdev.Device, truncate func(size int64) error) error {
	for i, step := range slices.Backward(b.Steps) {
		if i == stepTail && b.Grown > 0 && dev.Size() != b.Size {
			if err := truncate(b.Size); err != nil {
				return err
			}
		}
		for _, c := range step {
			if _, err := dev.WriteAt(c.Before, c.Offset); err != nil {
				return err
			}
		}
		if err := dev.Flush(); err != nil { // a step is undone before the one in front of it
			return err
		}
	}
	return nil
}
