package mapper

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
	"github.com/dmfuse/dmfuse/target/basic"
	"pgregory.net/rapid"
)

// modelSeg is a segment of a model table, in sectors.
type modelSeg struct {
	kind  string // linear, zero, error
	disk  string // "7:N" or the name of a device
	start int
	size  int
}

func (s modelSeg) line(at int) Line {
	l := Line{Start: blockdev.Sector(at), Length: blockdev.Sector(s.size), Type: s.kind}
	if s.kind == "linear" {
		l.Args = []string{s.disk, fmt.Sprint(s.start)}
	}
	return l
}

func modelLines(segs []modelSeg) []Line {
	var out []Line
	at := 0
	for _, s := range segs {
		out = append(out, s.line(at))
		at += s.size
	}
	return out
}

// modelDevice is what the mapper must think of a device.
type modelDevice struct {
	live, inactive []modelSeg
	suspended      bool
	loaded         bool
	opens          int
	events         uint32
}

// model is a second, simple mapper: content per disk, resolved sector by
// sector.
type model struct {
	disks   map[string][]byte
	devices map[string]*modelDevice
}

const modelSectors = 64

// place finds the bytes behind a sector of a device: nil with ok for zeros.
func (m *model) place(name string, sector int) (at []byte, ok bool) {
	if disk, is := m.disks[name]; is {
		return disk[sector*512 : sector*512+512], true
	}
	for _, s := range m.devices[name].live {
		if sector >= s.size {
			sector -= s.size
			continue
		}
		switch s.kind {
		case "zero":
			return nil, true
		case "error":
			return nil, false
		}
		return m.place(s.disk, s.start+sector)
	}
	return nil, false
}

func modelSize(segs []modelSeg) int {
	n := 0
	for _, s := range segs {
		n += s.size
	}
	return n
}

// uses says whether a device uses another, by any table, directly or not.
func (m *model) uses(from, to string) bool {
	if from == to {
		return true
	}
	d := m.devices[from]
	if d == nil {
		return false
	}
	for _, segs := range [][]modelSeg{d.live, d.inactive} {
		for _, s := range segs {
			if s.kind == "linear" && m.uses(s.disk, to) {
				return true
			}
		}
	}
	return false
}

// openCount is the number of devices that use name, and its opens.
func (m *model) openCount(name string) int {
	n := m.devices[name].opens
	for other, d := range m.devices {
		if other != name && slices.ContainsFunc(append(slices.Clone(d.live), d.inactive...), func(s modelSeg) bool {
			return s.kind == "linear" && s.disk == name
		}) {
			n++
		}
	}
	return n
}

// fits is the check of sizes.
func (m *model) fits(segs []modelSeg) bool {
	for _, s := range segs {
		if s.kind != "linear" {
			continue
		}
		size := modelSectors
		if d := m.devices[s.disk]; d != nil {
			size = modelSize(d.live)
		}
		if s.start+s.size > size {
			return false
		}
	}
	return true
}

// stuck says whether I/O on a device would wait: it or one below is suspended
// with a live table.
func (m *model) stuck(name string) bool {
	d := m.devices[name]
	if d == nil {
		return false
	}
	if d.live != nil && d.suspended {
		return true
	}
	return slices.ContainsFunc(d.live, func(s modelSeg) bool { return s.kind == "linear" && m.stuck(s.disk) })
}

// TestModel runs random operations against the mapper and the model.
func TestModel(t *testing.T) {
	for range 4 { // of a hundred runs each
		rapid.Check(t, runModel)
	}
}

// runModel is one run.
func runModel(t *rapid.T) {
	r := &modelRun{t: t, real: newDisks(), model: model{disks: map[string][]byte{}, devices: map[string]*modelDevice{}}}
	for i := range 2 {
		name := fmt.Sprintf("7:%d", i)
		r.real.add(name, modelSectors)
		r.model.disks[name] = make([]byte, modelSectors*512)
	}
	m, err := New(Options{
		Types: target.NewSet(basic.Types()...), Major: 253, ReleaseWait: -1,
		OpenNumber: r.real.openNumber, Host: Host{Proc: "/nonexistent", Sys: "/nonexistent"},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.m = m
	defer r.end(t)
	// What brings tables and data is drawn more often than what ends them.
	actions := []func(*rapid.T){
		r.write, r.write, r.write, r.read, r.read, r.read, r.load, r.load, r.load, r.resume, r.resume, r.resume,
		r.create, r.create, r.suspend, r.clear, r.remove, r.open, r.close, r.rename,
	}
	for _, name := range modelNames {
		r.start(t, name)
	}
	for range rapid.IntRange(1, 150).Draw(t, "steps") {
		actions[rapid.IntRange(0, len(actions)-1).Draw(t, "action")](t)
		r.check(t)
	}
}

type modelRun struct {
	t     *rapid.T
	m     *Manager
	real  *disks
	model model
}

// end closes the manager: nothing stays open. It may only tell of tables that
// could not be flushed because a device below was suspended.
func (r *modelRun) end(t *rapid.T) {
	ctx, cancel := r.ctx()
	defer cancel()
	err := r.m.Close(ctx)
	if err != nil && !strings.Contains(err.Error(), "was not flushed") {
		t.Fatalf("close: %v", err)
	}
	if r.real.open != 0 {
		t.Fatalf("%d lower devices are open", r.real.open)
	}
}

var modelNames = []string{"a", "b", "c", "d"}

// start makes a device with a table, so that there is something to work on.
func (r *modelRun) start(t *rapid.T, name string) {
	if rapid.Bool().Draw(t, "later") {
		return
	}
	d, err := r.m.Create(name, "", -1)
	want(t, "create", err, nil)
	segs := []modelSeg{{"linear", "7:1", 3, 20}, {kind: "zero", size: 5}, {"linear", "7:0", 0, 20}}
	want(t, "load", d.Load(context.Background(), modelLines(segs), false), nil)
	want(t, "resume", d.Resume(context.Background(), SuspendOptions{}), nil)
	r.model.devices[name] = &modelDevice{live: segs, loaded: true}
}

// pick draws a device; nil when it does not exist.
func (r *modelRun) pick(t *rapid.T) (string, *modelDevice, *Device) {
	name := rapid.SampledFrom(modelNames).Draw(t, "device")
	d, err := r.m.Device(ByName(name))
	md := r.model.devices[name]
	if (err == nil) != (md != nil) {
		t.Fatalf("device %s: %v", name, err)
	}
	return name, md, d
}

func (r *modelRun) ctx() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 5*time.Second)
}

func want(t *rapid.T, what string, err, kind error) {
	if blockdev.Kind(err) != kind {
		t.Fatalf("%s: %v, want kind %v", what, err, kind)
	}
}

func (r *modelRun) create(t *rapid.T) {
	name := rapid.SampledFrom(modelNames).Draw(t, "device")
	_, err := r.m.Create(name, "", -1)
	if r.model.devices[name] != nil {
		want(t, "create", err, blockdev.ErrBusy)
		return
	}
	want(t, "create", err, nil)
	r.model.devices[name] = &modelDevice{}
}

func (r *modelRun) load(t *rapid.T) {
	name, md, d := r.pick(t)
	if md == nil {
		return
	}
	segs := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) modelSeg {
		return modelSeg{
			kind:  rapid.SampledFrom([]string{"linear", "linear", "linear", "zero", "error"}).Draw(t, "kind"),
			disk:  rapid.SampledFrom(append([]string{"7:0", "7:1"}, modelNames...)).Draw(t, "disk"),
			start: rapid.IntRange(0, 20).Draw(t, "start"),
			size:  rapid.IntRange(1, 30).Draw(t, "size"),
		}
	}), 1, 4).Draw(t, "table")
	ctx, cancel := r.ctx()
	defer cancel()
	err := d.Load(ctx, modelLines(segs), false)
	kind := r.loadKind(name, md, segs)
	want(t, "load", err, kind)
	if kind == nil {
		md.inactive, md.loaded = segs, true
	}
}

// loadKind is what a load must answer: the first line that is refused decides,
// the sizes come last.
func (r *modelRun) loadKind(name string, md *modelDevice, segs []modelSeg) error {
	for _, s := range segs {
		if s.kind != "linear" || r.model.disks[s.disk] != nil {
			continue
		}
		low := r.model.devices[s.disk]
		switch {
		case low == nil:
			return blockdev.ErrNoDevice
		case s.disk == name && !md.loaded:
			return blockdev.ErrNoAddress
		case r.model.uses(s.disk, name):
			return blockdev.ErrInvalid
		case !low.loaded:
			return blockdev.ErrNoAddress
		}
	}
	if !md.loaded && !r.model.fits(segs) {
		return blockdev.ErrInvalid
	}
	return nil
}

func (r *modelRun) clear(t *rapid.T) {
	_, md, d := r.pick(t)
	if md == nil {
		return
	}
	want(t, "clear", d.Clear(), nil)
	md.inactive = nil
}

func (r *modelRun) suspend(t *rapid.T) {
	_, md, d := r.pick(t)
	if md == nil {
		return
	}
	ctx, cancel := r.ctx()
	defer cancel()
	o := SuspendOptions{NoFlush: rapid.Bool().Draw(t, "noflush"), NoLockFS: true}
	want(t, "suspend", d.Suspend(ctx, o), nil)
	md.suspended = true
}

func (r *modelRun) resume(t *rapid.T) {
	_, md, d := r.pick(t)
	if md == nil {
		return
	}
	ctx, cancel := r.ctx()
	defer cancel()
	err := d.Resume(ctx, SuspendOptions{NoLockFS: true})
	switch {
	case md.inactive != nil && !r.model.fits(md.inactive):
		want(t, "resume", err, blockdev.ErrInvalid)
		md.inactive, md.suspended = nil, true
	case md.inactive != nil:
		want(t, "resume", err, nil)
		md.live, md.inactive, md.suspended = md.inactive, nil, false
	case md.suspended && md.live == nil:
		want(t, "resume", err, blockdev.ErrInvalid)
	default:
		want(t, "resume", err, nil)
		md.suspended = false
	}
}

func (r *modelRun) remove(t *rapid.T) {
	name, md, _ := r.pick(t)
	if md == nil {
		return
	}
	ctx, cancel := r.ctx()
	defer cancel()
	_, err := r.m.Remove(ctx, ByName(name), RemoveOptions{})
	if r.model.openCount(name) > 0 {
		want(t, "remove", err, blockdev.ErrBusy)
		return
	}
	want(t, "remove", err, nil)
	delete(r.model.devices, name)
}

func (r *modelRun) open(t *rapid.T) {
	_, md, d := r.pick(t)
	if md == nil {
		return
	}
	want(t, "open", d.Open(true), nil)
	md.opens++
}

func (r *modelRun) close(t *rapid.T) {
	_, md, d := r.pick(t)
	if md == nil {
		return
	}
	if md.opens == 0 {
		return // not open
	}
	d.Release()
	md.opens--
}

func (r *modelRun) rename(t *rapid.T) {
	name, md, _ := r.pick(t)
	if md == nil {
		return
	}
	to := rapid.SampledFrom(modelNames).Draw(t, "to")
	err := r.m.Rename(name, to)
	if r.model.devices[to] != nil {
		want(t, "rename", err, blockdev.ErrBusy)
		return
	}
	want(t, "rename", err, nil)
	delete(r.model.devices, name)
	r.model.devices[to] = md
	for _, d := range r.model.devices {
		for _, segs := range [][]modelSeg{d.live, d.inactive} {
			for i := range segs {
				if segs[i].kind == "linear" && segs[i].disk == name {
					segs[i].disk = to
				}
			}
		}
	}
	if md.live != nil {
		md.events++
	}
}

// span draws a range of a device and says what must come of I/O on it.
func (r *modelRun) span(t *rapid.T, name string, md *modelDevice) (off, n int) {
	size := modelSize(md.live) * 512
	return rapid.IntRange(0, size+600).Draw(t, "offset"), rapid.IntRange(1, 9000).Draw(t, "length")
}

func (r *modelRun) write(t *rapid.T) {
	name, md, d := r.pick(t)
	if md == nil {
		return
	}
	off, n := r.span(t, name, md)
	data := bytes.Repeat([]byte{rapid.Byte().Draw(t, "byte")}, n)
	if r.model.stuck(name) && md.live != nil {
		return // it would wait
	}
	ctx, cancel := r.ctx()
	defer cancel()
	done, err := d.WriteAt(ctx, data, int64(off), rapid.Bool().Draw(t, "fua"))
	size := modelSize(md.live) * 512
	switch {
	case md.live == nil:
		want(t, "write", err, blockdev.ErrIO)
		return
	case off >= size:
		want(t, "write", err, blockdev.ErrNoSpace)
		return
	}
	for i := range min(n, size-off) {
		at, ok := r.model.place(name, (off+i)/512)
		if !ok {
			want(t, "write", err, blockdev.ErrIO)
			r.resync(t) // how much was written before the error is not defined
			return
		}
		if at != nil {
			at[(off+i)%512] = data[i]
		}
	}
	if err != nil || done != min(n, size-off) {
		t.Fatalf("write of %d at %d of %d: %d, %v", n, off, size, done, err)
	}
}

// resync takes the content of the disks as it is.
func (r *modelRun) resync(t *rapid.T) {
	for name, content := range r.model.disks {
		if n, err := r.real.mem[name].ReadAt(content, 0); n != len(content) {
			t.Fatal(err)
		}
	}
}

func (r *modelRun) read(t *rapid.T) {
	name, md, d := r.pick(t)
	if md == nil {
		return
	}
	off, n := r.span(t, name, md)
	if r.model.stuck(name) && md.live != nil {
		return // it would wait
	}
	ctx, cancel := r.ctx()
	defer cancel()
	got := bytes.Repeat([]byte{0xee}, n)
	done, err := d.ReadAt(ctx, got, int64(off))
	if md.live == nil {
		want(t, "read", err, blockdev.ErrIO)
		return
	}
	size := modelSize(md.live) * 512
	var wanted []byte
	for i := off; i < min(off+n, size); i++ {
		at, ok := r.model.place(name, i/512)
		if !ok {
			want(t, "read", err, blockdev.ErrIO)
			return
		}
		b := byte(0)
		if at != nil {
			b = at[i%512]
		}
		wanted = append(wanted, b)
	}
	if err != nil || !bytes.Equal(got[:done], wanted) {
		t.Fatalf("read of %d at %d of %d: %d bytes, %v; the content differs: %v", n, off, size, done, err, !bytes.Equal(got[:done], wanted))
	}
}

// check compares all that can be asked for.
func (r *modelRun) check(t *rapid.T) {
	if n := len(r.m.Devices()); n != len(r.model.devices) {
		t.Fatalf("%d devices, want %d", n, len(r.model.devices))
	}
	for name, md := range r.model.devices {
		d, err := r.m.Device(ByName(name))
		if err != nil {
			t.Fatal(err)
		}
		i := d.Info(false)
		if i.Live != (md.live != nil) || i.Inactive != (md.inactive != nil) || i.Suspended != md.suspended ||
			i.OpenCount != r.model.openCount(name) || i.EventNr != md.events || i.ReadAheadKnown != md.loaded ||
			d.Size() != int64(modelSize(md.live)*512) {
			t.Fatalf("device %s: %+v, want %+v with open count %d", name, i, md, r.model.openCount(name))
		}
		for _, inactive := range []bool{false, true} {
			segs := md.live
			if inactive {
				segs = md.inactive
			}
			r.checkTable(t, d, segs, inactive)
		}
	}
}

func (r *modelRun) checkTable(t *rapid.T, d *Device, segs []modelSeg, inactive bool) {
	lines := modelLines(segs)
	got := d.Status(target.StatusTable, inactive, true)
	if len(got) != len(lines) {
		t.Fatalf("%d lines, want %d", len(got), len(lines))
	}
	for i, l := range lines {
		if l.Type == "linear" && r.model.devices[l.Args[0]] != nil {
			low, err := r.m.Device(ByName(l.Args[0]))
			if err != nil {
				t.Fatal(err)
			}
			l.Args = []string{low.number(), l.Args[1]}
		}
		text := l.String()
		if len(l.Args) == 0 {
			text += " "
		}
		if got[i].String() != text {
			t.Fatalf("line %d is %q, want %q", i, got[i], text)
		}
	}
}
