package snapshot

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// transiently are plans with transient stores.
func transiently(t testing.TB, names ...string) (out []crashPlan) {
	for _, p := range slices.Concat(crashPlans, lazyPlans) {
		if slices.Contains(names, p.name) {
			p.store = "N"
			out = append(out, p)
		}
	}
	if len(out) != len(names) {
		t.Fatalf("no such plans: %q", names)
	}
	return out
}

// TestKillTransient: a worker that dies at any moment, and the next one at any
// moment of its start, lose nothing that was answered.
func TestKillTransient(t *testing.T) {
	for _, p := range transiently(t, "origin writes", "snapshot writes", "both, one chunk", "two chunk sizes", "side by side", "rewrites", "suspended") {
		t.Run(p.name, func(t *testing.T) {
			k := &killRun{crashPlan: p, t: t, deep: true}
			n, err := k.explore()
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d states", n)
		})
	}
}

// TestKillTransient_RecordIsNeeded: without it the kills notice.
func TestKillTransient_RecordIsNeeded(t *testing.T) {
	for _, p := range transiently(t, "origin writes", "snapshot writes") {
		p.hooks.NoTableRecord = true
		k := &killRun{crashPlan: p, t: t}
		if n, err := k.explore(); err == nil {
			t.Errorf("%s: %d states and nothing noticed", p.name, n)
		}
	}
}

// transientLab is a machine whose workers find the table of the last one.
func transientLab(t *testing.T, dir string, devs map[string]target.Lower) *lab {
	l := newLab(t, Options{TransientDir: dir})
	l.devs = devs
	return l
}

const transientLine = "0 256 snapshot o c N 8"

// Generations of workers go on with one store, which is gone with its table.
func TestTransientTable_Generations(t *testing.T) {
	dir := t.TempDir()
	l := transientLab(t, dir, map[string]target.Lower{})
	fill(t, l.mem("o", 256), 1)
	l.mem("c", 264) // 32 chunks, and one
	tb := l.live(transientLine)
	for gen := range 5 {
		org := l.live("0 256 snapshot-origin o")
		if err := org.write(uint64(10+gen), 248, 8); err != nil { // copied once
			t.Fatal(err)
		}
		for i := range 6 {
			at := (gen*6 + i) * 8
			if err := tb.write(uint64(2+gen), blockdev.Sector(at), 8); err != nil {
				t.Fatal(err)
			}
		}
		if got := tb.Status(0); !strings.HasPrefix(got, fmt.Sprint((6*(gen+1)+1)*8, "/264 ")) {
			t.Errorf("generation %d: status %q", gen, got)
		}
		next := transientLab(t, dir, l.devs)
		was := tb
		tb = next.live(transientLine, restoring)
		for g := range gen + 1 {
			tb.want(uint64(2+g), blockdev.Sector(g*48), 48)
		}
		_ = was // it died
		l = next
	}
	tb.close()
	if list, _ := os.ReadDir(dir); len(list) != 0 {
		t.Errorf("left: %v", list)
	}
	tb = transientLab(t, dir, l.devs).live(transientLine, restoring)
	defer tb.close()
	if got := tb.Status(0); got != "Invalid" {
		t.Errorf("status %q of a store that ended", got)
	}
}

// What cannot be is not believed: the snapshot is invalid, and the table gone.
func TestTransientTable_Damaged(t *testing.T) {
	dir := t.TempDir()
	l := transientLab(t, dir, map[string]target.Lower{})
	fill(t, l.mem("o", 256), 1)
	l.mem("c", 256)
	tb := l.live(transientLine)
	for i := range 10 {
		if err := tb.write(2, blockdev.Sector(i*16), 8); err != nil {
			t.Fatal(err)
		}
	}
	list, err := filepath.Glob(dir + "/*")
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	good, err := os.ReadFile(list[0])
	if err != nil || len(good) != tableHeader+10*tableEntry {
		t.Fatal(len(good), err)
	}
	try := func(what, line string, b []byte, want string) {
		t.Helper()
		if err := os.WriteFile(list[0], b, 0o600); err != nil {
			t.Fatal(err)
		}
		tb := transientLab(t, dir, l.devs).live(line, restoring)
		defer tb.close()
		if got := tb.Status(0); got != want {
			t.Errorf("%s: status %q, want %q", what, got, want)
		}
	}
	try("nothing", transientLine, good, "80/256 0")
	for i := range good {
		b := slices.Clone(good)
		b[i] ^= 0x10
		if i >= tableHeader-2 && i < tableHeader {
			continue // fills up
		}
		try(fmt.Sprintf("byte %d", i), transientLine, b, "Invalid")
	}
	for _, n := range []int{0, 1, tableHeader - 1, tableHeader + 3, len(good) - 1} {
		try(fmt.Sprintf("%d bytes", n), transientLine, good[:n], "Invalid")
	}
	try("an entry twice", transientLine, append(slices.Clone(good), good[len(good)-8:]...), "Invalid")
	try("chunk size", "0 256 snapshot o c N 16", good, "Invalid")
	far := append(slices.Clone(good), make([]byte, 8*30)...)
	e := entryOf(exception{old: 31, new: 39})
	for i := range 8 {
		far = append(far[:tableHeader+39*8+i], append([]byte{byte(e >> (8 * i))}, far[min(len(far), tableHeader+39*8+i+1):]...)...)
	}
	try("an entry beyond the COW device", transientLine, far, "Invalid")
}

// A table that cannot be written any more is taken away: the next worker must not
// believe half of it.
func TestTransientTable_CannotBeWritten(t *testing.T) {
	dir := t.TempDir()
	l := transientLab(t, dir, map[string]target.Lower{})
	fill(t, l.mem("o", 256), 1)
	l.mem("c", 256)
	tb := l.live(transientLine)
	if err := tb.write(2, 0, 8); err != nil {
		t.Fatal(err)
	}
	_ = tb.snap().core.Load().store.(*transient).kept.f.Close() // any write fails now
	if err := tb.write(2, 8, 8); err != nil {
		t.Fatalf("the snapshot itself has lost nothing: %v", err)
	}
	tb.want(2, 0, 16)
	next := transientLab(t, dir, l.devs).live(transientLine, restoring)
	defer next.close()
	if got := next.Status(0); got != "Invalid" {
		t.Errorf("status %q", got)
	}
	if !strings.Contains(l.logs.String(), "in memory only from now on") {
		t.Errorf("log: %s", l.logs.String())
	}
	tb.close()
}
