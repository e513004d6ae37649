package snapshot

import (
	"fmt"
	"maps"
	"slices"

	"github.com/dmfuse/dmfuse/blockdev"
)

// A repair in place changes as few blocks as it can, in steps with a barrier
// behind each:
//
//  1. the device grows, where the list has no room for its end, after the part
//     of a chunk that was there became zero; data that two entries share is
//     copied to chunks of its own;
//  2. entries in the place of those that are dropped: the last good ones of the
//     list, which stand there twice then;
//  3. the end of the list, which becomes zero from its new end on, and what
//     stands behind the header;
//  4. the header.
//
// After each step, and whatever of a step is on the disk, the list has every
// good entry at least once, so that a store that could be opened before can be
// opened, and reads what it read before or reads after. The order of the list
// means nothing to a reader.

// repairMax is how many bytes a repair in place changes at most.
const repairMax = 64 << 20

// useOutput is the advice for what cannot be done in place.
const useOutput = "a new store can be made of this one instead"

// Repair is what a repair in place is going to do.
type Repair struct {
	Dropped uint64 // entries that cannot be right
	Copied  uint64 // chunks that two entries shared
	GrowTo  int64  // bytes; 0: the size stays
	Losses  Losses

	dev    blockdev.Device
	judge  *judge
	unit   int64
	hooks  Hooks
	copies []exception // from chunk old to chunk new of the device
	steps  [4][]BlockChange
	bytes  int64
	cache  map[int64][]byte // blocks as they are after the steps so far
}

// The steps.
const (
	stepTail    = iota // what becomes part of a new area
	stepEntries        // good entries in the place of bad ones
	stepEnd            // zeros
	stepHeader
)

// BlockChange is one block that a repair changes.
type BlockChange struct {
	Offset int64  `json:"offset_bytes"`
	Before []byte `json:"before"`
	After  []byte `json:"after"`
}

// Steps are the changes to blocks that exist, in the order in which they are
// made, with a barrier behind each list.
func (r *Repair) Steps() [][]BlockChange { return r.steps[:] }

// Nothing tells whether there is nothing to repair.
func (r *Repair) Nothing() bool {
	return r.GrowTo == 0 && len(r.copies) == 0 && len(slices.Concat(r.steps[:]...)) == 0
}

// PlanRepair looks through the store on dev and finds what to change so that a
// check has nothing to say. Nothing is written.
func PlanRepair(dev blockdev.Device, o RepairOptions) (*Repair, error) {
	j, err := newJudge(dev, o)
	if err != nil {
		return nil, err
	}
	if j.unreadable > 0 {
		return nil, fmt.Errorf("%w: %d parts of the list of exceptions cannot be read: %s", blockdev.ErrIO, j.unreadable, useOutput)
	}
	r := &Repair{dev: dev, judge: j, unit: int64(blockdev.BlockSize(dev)), hooks: o.Hooks, Losses: j.losses, cache: map[int64][]byte{}}
	if err := r.planEntries(); err != nil {
		return nil, err
	}
	if err := r.planHeader(); err != nil {
		return nil, err
	}
	for i := range r.steps {
		r.steps[i] = merge(r.steps[i])
	}
	return r, nil
}

// planEntries finds the new list: bad entries are replaced by the last good
// ones, shared data gets a chunk of its own.
func (r *Repair) planEntries() error {
	j := r.judge
	bad := uint64(0)
	j.bad.ascending(func(uint64) bool { bad++; return true })
	keep := j.count - bad
	r.Dropped = bad
	from := j.count // the entry that was moved last
	var err error
	j.bad.ascending(func(n uint64) bool {
		if n >= keep {
			return false
		}
		from--
		for j.bad.has(from) {
			from--
		}
		err = r.place(n, from)
		return err == nil
	})
	if err != nil {
		return err
	}
	j.shared.ascending(func(n uint64) bool {
		if n < keep {
			err = r.place(n, n)
		}
		return err == nil
	})
	if err != nil {
		return err
	}
	if keep == j.count && !j.end.ended {
		next := j.layout.area(j.end.area + 1)
		r.grow(next)
		if err := r.clear(stepTail, j.offset(next), j.offset(next+1)); err != nil {
			return err
		}
	}
	if r.GrowTo > 0 && !canGrow(r.dev) {
		return fmt.Errorf("%w: the store needs %d bytes, and this device cannot grow: %s", blockdev.ErrNoSpace, r.GrowTo, useOutput)
	}
	return r.planEnd(keep)
}

// canGrow tells whether the device can be made larger: block devices cannot.
func canGrow(dev blockdev.Device) bool {
	if d, ok := dev.(blockdev.Identified); ok && d.ID().Kind == blockdev.IDBlock {
		return false
	}
	_, ok := dev.(blockdev.Grower)
	return ok
}

// place puts entry from of the old list at place n, with data of its own.
func (r *Repair) place(n, from uint64) error {
	j := r.judge
	var b [entrySize]byte
	if err := readFull(r.dev, b[:], j.offsetOf(from)); err != nil {
		return err
	}
	e := getEntry(b[:])
	if j.shared.has(from) {
		to, err := r.unused()
		if err != nil {
			return err
		}
		j.next = to + 1
		r.copies = append(r.copies, exception{e.new, to})
		r.Copied++
		r.grow(to)
		e.new = to
		putEntry(b[:], e)
	}
	return r.edit(stepEntries, j.offsetOf(n), b[:])
}

// unused is the next chunk that nothing is in. One that no entry names may be the
// data of an entry that is damaged, and the only copy there is.
func (r *Repair) unused() (Chunk, error) {
	j := r.judge
	b := make([]byte, min(j.bytes(), 1<<20))
	for to := j.next; ; to++ {
		if j.isArea(to) {
			continue
		}
		empty := true
		for off := j.offset(to); empty && to < j.chunks && off < j.offset(to+1); off += int64(len(b)) {
			if err := readFull(r.dev, b, off); err != nil {
				return 0, err
			}
			empty = !slices.ContainsFunc(b, func(x byte) bool { return x != 0 })
		}
		if empty {
			return to, nil
		}
	}
}

// offsetOf is the place of entry n of the list.
func (j *judge) offsetOf(n uint64) int64 {
	return j.offset(j.layout.area(n/j.perArea)) + int64(n%j.perArea)*entrySize
}

// grow makes sure that chunk c is there in the end.
func (r *Repair) grow(c Chunk) {
	if c >= r.judge.chunks {
		r.GrowTo = max(r.GrowTo, r.judge.offset(c+1))
	}
}

// planEnd makes the list end behind keep entries, with zeros up to the end of
// the area that it ended in.
func (r *Repair) planEnd(keep uint64) error {
	j := r.judge
	for a := keep / j.perArea; a <= j.end.area; a++ {
		from := j.offset(j.layout.area(a))
		end := from + j.bytes()
		if a == keep/j.perArea {
			from += int64(keep%j.perArea) * entrySize
		}
		if err := r.clear(stepEnd, from, end); err != nil {
			return err
		}
	}
	return nil
}

// clear plans zeros for what is not zero in a range.
func (r *Repair) clear(step int, from, end int64) error {
	end = min(end, r.dev.Size())
	buf := make([]byte, loadWindow)
	for from < end {
		n, hole, err := blockdev.Extent(r.dev, from)
		if err != nil {
			return err
		}
		if hole {
			from += n
			continue
		}
		b := buf[:min(end-from, loadWindow-from%loadWindow)]
		if err := readFull(r.dev, b, from); err != nil {
			return err
		}
		for i := int64(0); i < int64(len(b)); {
			k := min(r.unit-(from+i)%r.unit, int64(len(b))-i)
			if !allZero(b[i : i+k]) {
				if err := r.edit(step, from+i, zeros[:k]); err != nil {
					return err
				}
			}
			i += k
		}
		from += int64(len(b))
	}
	return nil
}

// planHeader makes the header right, and its chunk zero behind it.
func (r *Repair) planHeader() error {
	if err := r.clear(stepEnd, headerSize, r.judge.bytes()); err != nil {
		return err
	}
	b, err := r.judge.header.MarshalBinary()
	if err != nil {
		return err
	}
	return r.edit(stepHeader, 0, b)
}

// edit plans bytes within one block for a step.
func (r *Repair) edit(step int, off int64, b []byte) error {
	at := off - off%r.unit
	now := r.cache[at]
	if now == nil {
		now = make([]byte, min(r.unit, r.dev.Size()-at))
		if err := readFull(r.dev, now, at); err != nil {
			return err
		}
		r.cache[at] = now
	}
	if string(now[off-at:off-at+int64(len(b))]) == string(b) {
		return nil
	}
	after := slices.Clone(now)
	copy(after[off-at:], b)
	r.cache[at] = after
	if r.bytes += int64(len(after)); r.bytes > repairMax {
		return fmt.Errorf("%w: more than %d bytes are to be changed: %s", blockdev.ErrUnsupported, repairMax, useOutput)
	}
	r.steps[step] = append(r.steps[step], BlockChange{at, now, after})
	return nil
}

// merge makes the changes of a step to one block one change.
func merge(cs []BlockChange) []BlockChange {
	byOffset := map[int64]BlockChange{}
	for _, c := range cs {
		if had, ok := byOffset[c.Offset]; ok {
			c.Before = had.Before
		}
		byOffset[c.Offset] = c
	}
	out := make([]BlockChange, 0, len(byOffset))
	for _, off := range slices.Sorted(maps.Keys(byOffset)) {
		out = append(out, byOffset[off])
	}
	return out
}

// Apply does what was planned, durably. The caller has a backup of the changes,
// and nobody else writes to the device. After an error, or when the process is
// killed, the plan can be made and applied again, or the backup restored.
func (r *Repair) Apply() error {
	if err := r.apply(r.steps[stepTail]); err != nil { // before it is part of a chunk
		return err
	}
	if r.GrowTo > 0 {
		if err := blockdev.Grow(r.dev, r.GrowTo); err != nil {
			return err
		}
	}
	buf := make([]byte, min(r.judge.bytes(), 1<<20))
	for _, c := range r.copies {
		for at := int64(0); at < r.judge.bytes(); at += int64(len(buf)) {
			if err := readFull(r.dev, buf, r.judge.offset(c.old)+at); err != nil {
				return err
			}
			if _, err := r.dev.WriteAt(buf, r.judge.offset(c.new)+at); err != nil {
				return err
			}
		}
	}
	if err := r.barrier(); err != nil { // data before the entries that point to it
		return err
	}
	for _, step := range r.steps[stepEntries:] { // entries in their new places before the old ones go
		if err := r.apply(step); err != nil {
			return err
		}
	}
	return r.dev.Flush()
}

// apply does one step.
func (r *Repair) apply(step []BlockChange) error {
	if len(step) == 0 {
		return nil
	}
	for _, c := range step {
		if _, err := r.dev.WriteAt(c.After, c.Offset); err != nil {
			return err
		}
	}
	return r.barrier()
}

func (r *Repair) barrier() error {
	if r.hooks.NoRepairFlush {
		return nil
	}
	return r.dev.Flush()
}

// Chunk is the chunk size of the store.
func (r *Repair) Chunk() blockdev.Sector { return r.judge.chunk }

// Kept is the number of exceptions of the store after the repair.
func (r *Repair) Kept() uint64 { return r.judge.count - r.Dropped }
