package mirror

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
)

// recordFiles is a file system for sidecars, on two devices a file: one for what
// files hold, one for the names. So a power cut can lose either. A file takes a
// sector, which says which of the contents it has.
type recordFiles struct {
	mu       sync.Mutex
	data     map[string]blockdev.Device
	dir      map[string]blockdev.Device
	inodes   map[string]uint64
	failing  map[string]error // of writes
	contents *contents
}

// contents are all that was ever written, shared by the file systems of one run.
type contents struct {
	mu   sync.Mutex
	list [][]byte
}

func (c *contents) add(b []byte) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, b)
	return uint64(len(c.list))
}

func (c *contents) get(n uint64) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n == 0 || n > uint64(len(c.list)) {
		return nil // never written: an empty file
	}
	return c.list[n-1]
}

const recordSlots = 128 // sectors of a device: files ever made

func newRecordFiles(c *contents) *recordFiles {
	return &recordFiles{
		data: map[string]blockdev.Device{}, dir: map[string]blockdev.Device{},
		inodes: map[string]uint64{}, failing: map[string]error{}, contents: c,
	}
}

// place makes a file of that name one that can have a sidecar.
func (f *recordFiles) place(name string, data, dir blockdev.Device) {
	f.data[name], f.dir[name], f.inodes[name] = data, dir, 1
}

func (f *recordFiles) fail(name string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failing[name] = err
}

func (f *recordFiles) check(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failing[name]
}

func of(path string) string { return strings.TrimSuffix(path, SidecarSuffix) }

func (f *recordFiles) isFile(dev blockdev.Identified) bool { return f.data[dev.Name()] != nil }

func (f *recordFiles) inode(file string) (uint64, error) { return f.inodes[file], nil }

func number(d blockdev.Device, slot int64) uint64 {
	var b [8]byte
	if _, err := d.ReadAt(b[:], slot*blockdev.SectorSize); err != nil {
		panic(err)
	}
	return binary.LittleEndian.Uint64(b[:])
}

func setNumber(d blockdev.Device, slot int64, n uint64) error {
	b := make([]byte, blockdev.SectorSize)
	binary.LittleEndian.PutUint64(b, n)
	_, err := d.WriteAt(b, slot*blockdev.SectorSize)
	return err
}

func (f *recordFiles) read(path string) ([]byte, error) {
	d := f.dir[of(path)]
	if d == nil {
		return nil, fs.ErrNotExist
	}
	slot := number(d, 0)
	if slot == 0 {
		return nil, fs.ErrNotExist
	}
	return f.contents.get(number(f.data[of(path)], int64(slot))), nil
}

func (f *recordFiles) create(path string, data []byte) (string, func(), error) {
	name := of(path)
	if err := f.check(name); err != nil {
		return "", nil, err
	}
	slot := int64(number(f.dir[name], 0)) + 1
	for slot < recordSlots && number(f.data[name], slot) != 0 {
		slot++
	}
	if slot == recordSlots { // a long run begins anew
		slot = 1
	}
	return fmt.Sprintf("%s#%d", name, slot), nil, setNumber(f.data[name], slot, f.contents.add(data))
}

func split(tmp string) (name string, slot uint64) {
	name, text, _ := strings.Cut(tmp, "#")
	if _, err := fmt.Sscan(text, &slot); err != nil {
		panic(err)
	}
	return name, slot
}

func (f *recordFiles) sync(tmp string) error {
	name, _ := split(tmp)
	return f.data[name].Flush()
}

func (f *recordFiles) rename(tmp, path string) error {
	_, slot := split(tmp)
	return setNumber(f.dir[of(path)], 0, slot)
}

func (f *recordFiles) syncDir(path string) error { return f.dir[of(path)].Flush() }
func (f *recordFiles) remove(string)             {}
func (f *recordFiles) dropUnfinished(string)     {}

// recordLab is a lab whose devices have sidecars.
type recordLab struct {
	*lab
	files *recordFiles
}

func newRecordLab(t testing.TB, o Options) *recordLab {
	f := newRecordFiles(&contents{})
	o.steps = f
	return &recordLab{newLab(t, o), f}
}

// file makes a memory device that has a sidecar.
func (l *recordLab) file(name string, sectors blockdev.Sector) *blockdev.Mem {
	m := l.mem(name, sectors)
	l.files.place(name, blockdev.NewMem(recordSlots*blockdev.SectorSize), blockdev.NewMem(recordSlots*blockdev.SectorSize))
	return m
}

// again is a lab on the same devices: what a new daemon finds.
func (l *recordLab) again() *recordLab {
	n := newRecordLab(l.t, l.o)
	n.files = l.files
	n.o.steps = l.files
	for k, d := range l.devs {
		n.devs[k] = d
	}
	return n
}

// in waits until no leg is filled and all regions are in sync.
func (tb *table) filledUp() {
	tb.l.t.Helper()
	until(tb.l.t, "the legs are filled", func() bool {
		tb.mu.Lock()
		defer tb.mu.Unlock()
		return tb.rec.active == 0 && tb.inSync && !tb.filling()
	})
}

// states are those of the legs, by the record that is durable.
func (tb *table) states() string {
	var out []string
	r := tb.recordNow()
	if r == nil {
		return "no record"
	}
	for _, l := range r.Legs {
		out = append(out, string(l.State))
	}
	return strings.Join(out, " ")
}
