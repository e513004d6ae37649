package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
)

// cowFileIn gives the lab a COW device whose name is a path, so that it can
// have a sidecar.
func (l *lab) cowFileIn(dir string, sectors blockdev.Sector) (path string, m *blockdev.Mem) {
	path = filepath.Join(dir, "cow")
	m = blockdev.NewMem(sectors.Bytes())
	l.devs[path] = named{m, path}
	return path, m
}

func TestSidecar_RoundTrip(t *testing.T) {
	cow := filepath.Join(t.TempDir(), "cow")
	if _, err := ReadSidecar(cow); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	want := Sidecar{
		Version: 1, Kind: "snapshot-store", Name: "snap", Inode: 7, Store: "P",
		Origin:    &SidecarOrigin{Path: "/img", Dev: 1, Inode: 2, Size: 3},
		ChunkSize: 8, Created: &now, CreatedByUs: true, Policies: map[string]string{"overflow": "grow"},
	}
	if err := WriteSidecar(cow, want); err != nil {
		t.Fatal(err)
	}
	got, err := ReadSidecar(cow)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v %v", got, err)
	}
	if err := MarkSidecarInvalid(cow, "first", now); err != nil {
		t.Fatal(err)
	}
	if err := MarkSidecarInvalid(cow, "second", now); err != nil {
		t.Fatal(err)
	}
	want.Invalid = &SidecarInvalid{Reason: "first", Time: now}
	if got, err := ReadSidecar(cow); err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("marked: %+v %v", got, err)
	}
	left, _ := filepath.Glob(filepath.Join(filepath.Dir(cow), "*"))
	if len(left) != 1 {
		t.Errorf("files left: %v", left)
	}
}

func TestSidecar_Refused(t *testing.T) {
	cow := filepath.Join(t.TempDir(), "cow")
	for _, text := range []string{"", "{", "[]", `{"version":1}`, `{"version":2,"kind":"snapshot-store"}`,
		`{"version":0,"kind":"snapshot-store"}`, `{"version":1,"kind":"mirror"}`} {
		if err := os.WriteFile(SidecarPath(cow), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadSidecar(cow); blockdev.Kind(err) != blockdev.ErrInvalid {
			t.Errorf("%q: %v", text, err)
		}
	}
	if err := WriteSidecar(filepath.Join(t.TempDir(), "no", "such", "cow"), Sidecar{}); err == nil {
		t.Error("written into a directory that is not there")
	}
}

func TestRestore(t *testing.T) {
	l := newLab(t, Options{})
	fill(t, l.mem("o", 64), 1)
	path, _ := l.cowFileIn(t.TempDir(), 400)
	line := "0 64 snapshot o " + path + " P 8"
	snap := l.live(line)
	if err := snap.write(2, 8, 8); err != nil {
		t.Fatal(err)
	}
	status := snap.Status(0)
	snap.close()
	snap = l.live(line, restoring)
	wantStatus(t, snap, status)
	snap.want(2, 8, 8)
	snap.close()
}

// TestRestore_Lost: what cannot be brought back is there, invalid, and durably
// so.
func TestRestore_Lost(t *testing.T) {
	for _, c := range []struct {
		name    string
		store   string
		prepare func(l *lab, path string, m *blockdev.Mem)
		header  bool // the header says it, else the sidecar
		nothing bool // neither: there is nothing that could be taken for valid
	}{
		{name: "transient", store: "N", nothing: true, prepare: func(*lab, string, *blockdev.Mem) {}},
		{name: "no COW device", store: "P", prepare: func(l *lab, path string, _ *blockdev.Mem) { l.devs[path] = nil }},
		{name: "another file in its place", store: "P", prepare: func(_ *lab, _ string, m *blockdev.Mem) { fill(l0{}, m, 5) }},
		{name: "an empty file in its place", store: "P", prepare: func(_ *lab, _ string, m *blockdev.Mem) { _ = m.Zero(0, 512, true) }},
		{name: "area unreadable", store: "P", header: true, prepare: func(l *lab, path string, _ *blockdev.Mem) { l.fault(path).SetText("read 8+8 errno=EIO") }},
		{name: "nothing readable or writable", store: "P", prepare: func(l *lab, path string, _ *blockdev.Mem) {
			l.fault(path).SetText("any errno=EIO")
		}},
		{name: "sidecar says invalid", store: "P", header: true, prepare: func(l *lab, path string, _ *blockdev.Mem) {
			if err := MarkSidecarInvalid(path, "it was lost", time.Now()); err != nil {
				l.t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t, Options{})
			o := l.mem("o", 64)
			fill(t, o, 1)
			path, m := l.cowFileIn(t.TempDir(), 400)
			l.live("0 64 snapshot o " + path + " P 8").close()
			before := content(t, m)
			c.prepare(l, path, m)
			changed := string(content(t, m)) != string(before)
			snap := l.live("0 64 snapshot o "+path+" "+c.store+" 8", restoring)
			org := l.live("0 64 snapshot-origin o", restoring)
			wantStatus(t, snap, "Invalid")
			wantTable(t, snap, "o "+path+" "+c.store+" 8")
			if _, err := snap.read(0, 1); !errors.Is(err, ErrInvalidSnapshot) {
				t.Error(err)
			}
			if err := snap.write(1, 0, 1); !errors.Is(err, ErrInvalidSnapshot) {
				t.Error(err)
			}
			h, err := ReadHeader(m)
			if c.header != (err == nil && h.Magic == magic && h.Valid == 0) {
				t.Errorf("header %+v", h)
			}
			side, err := ReadSidecar(path)
			if marked := err == nil && side.Invalid != nil; marked == (c.header || c.nothing) && c.name != "sidecar says invalid" {
				t.Errorf("sidecar %+v %v", side, err)
			}
			if changed && h.Magic == magic {
				t.Error("a store was made where there was none")
			}
			if err := org.write(2, 0, 64); err != nil {
				t.Error(err)
			}
			if snap.events != 0 {
				t.Errorf("%d events", snap.events)
			}
			snap.close()
			org.close()
			// The next restart, with the device back, knows it too.
			if f, ok := l.devs[path].(interface{ SetText(string) }); ok {
				f.SetText("")
			}
			if l.devs[path] == nil {
				l.devs[path] = named{m, path}
			}
			if c.store == "P" && !changed {
				snap = l.live("0 64 snapshot o "+path+" P 8", restoring)
				wantStatus(t, snap, "Invalid")
				snap.close()
				if h, err := ReadHeader(m); err != nil || h.Valid != 0 {
					t.Errorf("header after the next restart: %+v %v", h, err)
				}
			}
		})
	}
}

// l0 lets fill be used where no test is at hand.
type l0 struct{ testing.TB }

func (l0) Helper() {}

// TestInvalid_WhenTheHeaderCannotBeWritten: the sidecar says it, before the
// origin write goes on.
func TestInvalid_WhenTheHeaderCannotBeWritten(t *testing.T) {
	l := newLab(t, Options{})
	fill(t, l.mem("o", 64), 1)
	path, m := l.cowFileIn(t.TempDir(), 400)
	f := l.fault(path)
	of := l.fault("o")
	snap, org := l.live("0 64 snapshot o "+path+" P 8"), l.live("0 64 snapshot-origin o")
	f.SetText("write errno=EIO; fua errno=EIO; zero errno=EIO; flush errno=EIO")
	of.SetText("write hang")
	w := async(func() error { return org.write(2, 0, 8) })
	awaitHanging(t, of, 1)
	side, err := ReadSidecar(path)
	if err != nil || side.Invalid == nil || !strings.Contains(side.Invalid.Reason, "input/output error") {
		t.Errorf("sidecar %+v %v", side, err)
	}
	of.Release()
	if err := result(t, w); err != nil {
		t.Fatal(err)
	}
	if snap.events != 1 {
		t.Errorf("%d events", snap.events)
	}
	snap.close()
	org.close()
	f.SetText("")
	if h, err := ReadHeader(m); err != nil || h.Valid == 0 {
		t.Fatalf("header %+v %v", h, err)
	}
	snap = l.live("0 64 snapshot o "+path+" P 8", restoring)
	wantStatus(t, snap, "Invalid")
	snap.close()
	if h, err := ReadHeader(m); err != nil || h.Valid != 0 {
		t.Errorf("header after a restart: %+v %v", h, err)
	}
}

// The sidecar of a file that was replaced says nothing about the new one.
func TestRestore_MarkOfAnotherFile(t *testing.T) {
	dir := t.TempDir()
	old, path := filepath.Join(dir, "old"), filepath.Join(dir, "cow")
	for _, p := range []string{old, path} {
		if err := os.WriteFile(p, make([]byte, 400*512), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := MarkSidecarInvalid(old, "gone", time.Now()); err != nil {
		t.Fatal(err)
	}
	l := newLab(t, Options{})
	fill(t, l.mem("o", 64), 1)
	h, err := blockdev.NewPool(blockdev.PoolOptions{}).Open(path, true)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	l.devs[path] = h
	line := "0 64 snapshot o " + path + " P 8"
	l.live(line).close()
	if err := os.Rename(SidecarPath(old), SidecarPath(path)); err != nil {
		t.Fatal(err)
	}
	snap := l.live(line, restoring)
	wantStatus(t, snap, "16/400 16")
	snap.want(1, 0, 8)
	snap.close()
	// A mark that follows is one of this file.
	if err := MarkSidecarInvalid(path, "lost", time.Now()); err != nil {
		t.Fatal(err)
	}
	if side, err := ReadSidecar(path); err != nil || side.Invalid == nil || side.Invalid.Reason != "lost" {
		t.Fatalf("%+v %v", side, err)
	}
	snap = l.live(line, restoring)
	wantStatus(t, snap, "Invalid")
	snap.close()
}

// A store that is smaller than a chunk of the default size comes back, too, when
// the record of its table has no chunk size: that of a table that took over.
func TestRestore_SmallStoreWithoutChunkSize(t *testing.T) {
	l := newLab(t, Options{})
	fill(t, l.mem("o", 64), oldSeed)
	l.mem("c", 20)
	s := l.live("0 64 snapshot o c P 1")
	if err := s.write(7, 3, 2); err != nil {
		t.Fatal(err)
	}
	want, err := s.read(0, 64)
	if err != nil {
		t.Fatal(err)
	}
	s.close()
	s = l.live("0 64 snapshot o c P 0", restoring)
	defer s.close()
	if got, err := s.read(0, 64); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v %s", err, firstDifference(got, want))
	}
}

// A merge whose COW device is away, or damaged, at one restart answers errors, marks
// nothing invalid, and is what it was when the store is there again.
func TestRestore_MergeWithoutItsStore(t *testing.T) {
	for _, how := range []string{"away", "damaged"} {
		t.Run(how, func(t *testing.T) {
			const size = 256
			l := newLab(t, Options{})
			o := l.mem("o", size)
			fill(t, o, oldSeed)
			c := l.mem("c", 1024)
			want := scattered(l, size, 8, 40)
			line := fmt.Sprintf("0 %d snapshot-merge o c P 8", size)
			whole := content(t, c)
			if how == "away" {
				delete(l.devs, "c")
			} else {
				put(t, c, bytes.Repeat([]byte{0x7f}, 64), 8*512)
			}
			origin := content(t, o)
			tb := l.paused(line, restoring)
			if _, err := tb.read(0, size); blockdev.Kind(err) != blockdev.ErrIO {
				t.Errorf("read: %v, expected an I/O error", err)
			}
			if err := tb.write(9, 0, 8); blockdev.Kind(err) != blockdev.ErrIO {
				t.Errorf("write: %v, expected an I/O error", err)
			}
			tb.close()
			if !bytes.Equal(content(t, o), origin) {
				t.Error("the origin was changed")
			}
			if how == "away" {
				l.devs["c"] = c
			} else {
				put(t, c, whole, 0)
			}
			tb = l.paused(line, restoring)
			defer tb.close()
			if got, err := tb.read(0, size); err != nil || !bytes.Equal(got, want) {
				t.Errorf("with the store: %v %s", err, firstDifference(got, want))
			}
		})
	}
}
