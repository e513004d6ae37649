package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/snapshot"
)

// cow repair --output: a new store, which has its name only when it is whole.

// repairInto makes a new store of FILE.
func (a *app) repairInto(f cowFacts, o repairOptions) error {
	opts, err := o.options(&f)
	if err != nil {
		return err
	}
	chunk, err := chunkFlag("--chunk-size", o.chunk)
	if err != nil {
		return err
	}
	if f.side != nil && f.side.Invalid != nil && !o.markValid {
		return fail(exitFailed, fmt.Errorf("%s is not repaired: its record says that the snapshot is invalid: %s", f.path, f.side.Invalid.Reason), "if you know better: --mark-valid")
	}
	var origin blockdev.Device
	if o.origin != "" {
		dev, err := blockdev.OpenFile(f.originPath, blockdev.FileOptions{})
		if err != nil {
			return fail(exitCode(err), fmt.Errorf("the origin: %w", err), "")
		}
		defer dev.Close()
		if err := f.checkOrigin(chunk, o.force); err != nil {
			return err
		}
		origin = dev
	}
	out, err := f.planOutput(o)
	if err != nil {
		return err
	}
	r, err := snapshot.PlanRebuild(f.dev, origin, chunk, opts)
	if err != nil {
		return explainRepair(f, err)
	}
	ans := repairAnswer{Path: f.path, Output: out.path, Size: out.size, Chunk: r.Chunk.Bytes(), Kept: r.Exceptions, Dropped: r.Dropped, Losses: r.Losses, Problems: problemCount(f.report)}
	if !out.block {
		ans.Size = f.outputSize(r)
	}
	if o.dry {
		return a.printRepair(ans)
	}
	if out.block {
		err = f.writeOnto(out.path, r)
	} else {
		err = f.writeNew(out.path, ans.Size, r, o.force)
	}
	if err != nil {
		return fail(exitCode(err), fmt.Errorf("the new store %s is not made: %w", out.path, err), advice(err))
	}
	ans.Losses, ans.Done = r.Losses, true
	return a.printRepair(ans)
}

// checkOrigin refuses data of an origin that is not the one of the store, or not
// as it was: larger chunks would keep it.
func (f *cowFacts) checkOrigin(chunk blockdev.Sector, force bool) error {
	if chunk <= f.report.Chunk || force {
		return nil
	}
	p, err := fileAt(f.path)
	if err != nil {
		return err
	}
	o, err := fileAt(f.originPath)
	if err != nil {
		return err
	}
	problems := sidecarProblems(p, baseOf{lower: o, size: int64(o.sectors()) * 512})
	if f.side != nil && f.side.Invalid != nil { // --mark-valid was given
		problems = problems[1:]
	}
	if len(problems) == 0 {
		return nil
	}
	return fail(exitFailed, fmt.Errorf("%s does not go with the origin %s:\n  - %s", f.path, f.originPath, strings.Join(problems, "\n  - ")), "larger chunks would keep its data; if you know better: --force")
}

// planOutput finds the place of a new store, and refuses one that holds data.
func (f *cowFacts) planOutput(o repairOptions) (place, error) {
	path, err := cleanAbs(o.output)
	if err != nil {
		return place{}, err
	}
	out, err := fileAt(path)
	if errors.Is(err, os.ErrNotExist) {
		return place{path: path}, checkDir(path, "new store")
	}
	if err != nil {
		return out, err
	}
	for _, other := range []string{f.path, f.originPath} {
		if other != "" && sameFile(other, out) {
			return out, usagef("--output %s: it is FILE, or the origin", path)
		}
	}
	if err := checkNoRecord(path); err != nil {
		return out, err
	}
	if o.dry || o.force {
		return out, nil
	}
	if blank, err := isBlank(out); err != nil || blank && out.block {
		return out, err
	}
	return out, fail(exitBusy, fmt.Errorf("the output %s is there already", path), "choose another name, or replace it with --force")
}

// outputSize is the size of a new file: one that never overflows where the old
// one did not, else that of the old one or what is needed.
func (f *cowFacts) outputSize(r *snapshot.Rebuild) int64 {
	size := max(f.dev.Size(), r.Size().Bytes())
	if f.originSize == 0 {
		return size
	}
	origin := blockdev.SectorsIn(f.originSize)
	full, err := snapshot.NeededSize(origin, r.Chunk, true).CheckedBytes()
	if err == nil && f.report.Needed > 0 && f.dev.Size() >= f.report.Needed.Bytes() {
		size = max(full, r.Size().Bytes())
	}
	return size
}

// writeNew makes a file, sparse, and gives it its name when it is whole.
func (f *cowFacts) writeNew(path string, size int64, r *snapshot.Rebuild, replace bool) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp.Name())
		}
	}()
	err = tmp.Truncate(size)
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err = f.writeTo(tmp.Name(), r, true); err != nil {
		return err
	}
	if f.side != nil {
		if err = checkRecordPlace(path); err != nil {
			return err
		}
	}
	if replace {
		if err := f.checkUnused(path); err != nil {
			return err
		}
	}
	if err = blockdev.Publish(tmp.Name(), path, replace); err != nil {
		return err
	}
	return f.newSidecar(path, r)
}

// checkRecordPlace refuses a place for a store whose record would overwrite
// something else.
func checkRecordPlace(path string) error {
	_, err := snapshot.ReadSidecar(path)
	if err == nil || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return fail(exitBusy, fmt.Errorf("%s, where the record of the new store belongs, is something else: %w", snapshot.SidecarPath(path), err), "move it away, or choose another name")
}

// checkUnused refuses to replace a file that is in use.
func (f *cowFacts) checkUnused(path string) error {
	dev, err := blockdev.OpenFile(path, blockdev.FileOptions{Write: true})
	switch {
	case blockdev.Kind(err) == blockdev.ErrNoDevice:
		return nil
	case err != nil:
		return err
	}
	return dev.Close()
}

// writeOnto makes the store on a block device.
func (f *cowFacts) writeOnto(path string, r *snapshot.Rebuild) error {
	return f.writeTo(path, r, false)
}

func (f *cowFacts) writeTo(path string, r *snapshot.Rebuild, zero bool) error {
	dev, err := blockdev.OpenFile(path, blockdev.FileOptions{Write: true})
	if err != nil {
		return err
	}
	defer dev.Close()
	if err := r.Write(dev, zero); err != nil {
		return err
	}
	rep, err := snapshot.CheckStore(dev, blockdev.SectorsIn(f.originSize))
	if err == nil {
		err = rep.Err()
	}
	return err
}

// newSidecar writes the record of a new store: that of the old one, for another
// file, which removing the snapshot does not delete.
func (f *cowFacts) newSidecar(path string, r *snapshot.Rebuild) error {
	if f.side == nil {
		return nil
	}
	p, err := fileAt(path)
	if err != nil {
		return err
	}
	side := *f.side
	side.Inode, side.ChunkSize, side.Invalid, side.CreatedByUs = p.stat.Ino, uint32(r.Chunk), nil, false
	return snapshot.WriteSidecar(path, side)
}
