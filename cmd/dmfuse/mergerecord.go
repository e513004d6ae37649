package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/snapshot"
)

// mergeRecord is a merge that the daemon brings to its end, as it stands in
// R/merges: who begins it may go away, and so may the daemon. Devices are named by
// their serial numbers, which are never used twice.
type mergeRecord struct {
	Version int `json:"version"`

	Device   uint64 `json:"device"`   // carries the merge
	Snapshot uint64 `json:"snapshot"` // the same where it became the merge itself
	Name     string `json:"name"`     // of the snapshot when it began
	COW      string `json:"cow"`      // as in its table
	Inode    uint64 `json:"cow_inode,omitempty"`
	KeepCOW  bool   `json:"keep_cow"`

	Base    string   `json:"base,omitempty"`    // a frozen base that was guarded
	Guarded []uint64 `json:"guarded,omitempty"` // devices that relied on it

	// Begun is false until the device shows what the snapshot showed: then there
	// is no way back, and before there is nothing to go on with.
	Begun bool      `json:"begun"`
	Time  time.Time `json:"time"`

	waits string // why the end has to wait
}

const mergeRecordVersion = 1

func (r *mergeRecord) path(dir string) string {
	return filepath.Join(dir, strconv.FormatUint(r.Device, 10)+".json")
}

// write puts the record in place, durably.
func (r *mergeRecord) write(dir string) error {
	r.Version = mergeRecordVersion
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return blockdev.ReplaceFile(r.path(dir), append(b, '\n'))
}

func (r *mergeRecord) remove(dir string) error {
	if err := os.Remove(r.path(dir)); err != nil && !isMissing(err) {
		return err
	}
	return nil
}

// readMergeRecords reads all of them, and names what cannot be read, which is
// moved aside. Those that a daemon died over while it wrote them are removed.
func readMergeRecords(dir string) (list []*mergeRecord, problems []error) {
	if err := blockdev.DropUnfinished(dir, nil); err != nil {
		problems = append(problems, err)
	}
	paths, _ := filepath.Glob(filepath.Join(dir, "*.json"))
	for _, path := range paths {
		r := &mergeRecord{}
		b, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(b, r)
		}
		if err == nil && (r.Version != mergeRecordVersion || r.path(dir) != path) {
			err = fmt.Errorf("version %d, of the device with serial number %d", r.Version, r.Device)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("the record of a merge, %s, is moved aside: %w", path, err), os.Rename(path, path+".bad"))
			continue
		}
		list = append(list, r)
	}
	return list, problems
}

// markMerging notes in the sidecar of a COW file that it is being merged. Where
// there is no sidecar none is made.
func markMerging(cow place, device, throttle string) error {
	side, ok, err := readSidecar(cow)
	if err != nil || !ok {
		return err
	}
	side.BeginMerging(device, throttle, time.Now())
	return snapshot.WriteSidecar(cow.path, side)
}

// unmarkMerging takes that back.
func unmarkMerging(cow place) error {
	side, ok, err := readSidecar(cow)
	if err != nil || !ok || side.Merging == nil {
		return err
	}
	side.EndMerging()
	return snapshot.WriteSidecar(cow.path, side)
}

// dropSidecar removes what stands beside a COW file that was deleted.
func (r *mergeRecord) dropSidecar() error {
	side, err := snapshot.ReadSidecar(r.COW)
	if err != nil || r.KeepCOW || !side.CreatedByUs || side.Inode != r.Inode {
		return nil
	}
	return snapshot.RemoveSidecar(r.COW)
}

// tidyStore ends a store whose exceptions are all merged: its file is deleted if
// snapshot create made it, else it is closed as by snapshot rm. One that is not
// empty stays as it is: somebody else has changed the table.
func (r *mergeRecord) tidyStore(origin string) (deleted bool, err error) {
	if !filepath.IsAbs(r.COW) {
		return false, nil
	}
	cow, err := fileAt(r.COW)
	if isMissing(err) {
		return true, r.dropSidecar() // before a kill
	}
	if err != nil || cow.block || cow.stat.Ino != r.Inode {
		return false, err
	}
	dev, err := blockdev.OpenFile(cow.path, blockdev.FileOptions{})
	if err != nil {
		return false, err
	}
	report, err := snapshot.CheckStore(dev, blockdev.MaxSector)
	if err = errors.Join(err, dev.Close()); err != nil {
		return false, err
	}
	if report.Exceptions > 0 || report.Damaged() {
		return false, fmt.Errorf("%s is kept: it still holds %s", cow.path, count(report.Exceptions, "chunk"))
	}
	if !r.KeepCOW {
		if deleted, err = deleteCow(cow); deleted || err != nil {
			return deleted, err
		}
	}
	side, ok, err := readSidecar(cow)
	if err != nil || !ok {
		return false, err
	}
	side.EndMerging()
	side.Closed = &snapshot.SidecarClosed{Time: time.Now().UTC()}
	if p, err := fileAt(origin); err == nil && !p.block {
		side.Closed.OriginMtime = mtime(p)
	}
	return false, snapshot.WriteSidecar(cow.path, side)
}
