package cli

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// writers keep writing to a device and reading back, until stop is called. Each
// has blocks of its own; what was answered must be read.
func writers(t *testing.T, path string, size int64) (stop func()) {
	t.Helper()
	const n, block = 4, 4096
	seed := harness.Seed(t)
	done, ended := make(chan struct{}), make(chan error, n)
	var rounds atomic.Int64
	for w := range n {
		go func() {
			ended <- func() error {
				f, err := os.OpenFile(path, os.O_RDWR, 0)
				if err != nil {
					return err
				}
				defer f.Close()
				rnd := harness.Rand(seed + uint64(w))
				last := map[int64]byte{}
				buf := make([]byte, block)
				for {
					select {
					case <-done:
						return check(f, last, buf)
					default:
					}
					off := (rnd.Int64N(size/block/n)*n + int64(w)) * block
					fill := byte(rnd.UintN(256))
					if err := writeBlock(f, rnd, off, fill, buf, last); err != nil {
						return err
					}
					rounds.Add(1)
				}
			}()
		}()
	}
	harness.Eventually(t, 30*time.Second, "the writers are at work", func() bool { return rounds.Load() > 20 })
	return func() {
		t.Helper()
		close(done)
		for range n {
			select {
			case err := <-ended:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(time.Minute):
				t.Fatal("a writer hangs")
			}
		}
	}
}

// writeBlock writes one block, and reads another that was written before.
func writeBlock(f *os.File, rnd *rand.Rand, off int64, fill byte, buf []byte, last map[int64]byte) error {
	for i := range buf {
		buf[i] = fill
	}
	if _, err := f.WriteAt(buf, off); err != nil {
		return fmt.Errorf("write at %d: %w", off, err)
	}
	last[off] = fill
	if rnd.UintN(16) == 0 {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	return check(f, map[int64]byte{off: fill}, buf)
}

func check(f *os.File, want map[int64]byte, buf []byte) error {
	for off, fill := range want {
		if _, err := f.ReadAt(buf, off); err != nil {
			return fmt.Errorf("read at %d: %w", off, err)
		}
		for i, b := range buf {
			if b != fill {
				return fmt.Errorf("byte %d reads %#x, %#x was written", off+int64(i), b, fill)
			}
		}
	}
	return nil
}

// Legs come and go under load: no request is lost, and the legs are equal.
func TestMirrorLegs_ComeAndGoUnderLoad(t *testing.T) {
	for _, log := range []string{"", "core"} {
		t.Run("log "+log, func(t *testing.T) {
			d := harness.Start(t)
			a, b, c, e := d.Image("a.img", 8*mib), d.Image("b.img", 8*mib), d.Image("c.img", 8*mib), d.Image("e.img", 8*mib)
			args := []string{"mirror", "create", "m", a, b, "--region-size", "64k", "--wait"}
			if log != "" {
				args = append(args, "--log", log)
			}
			d.Must(args...)
			stop := writers(t, d.Dev("m"), 8*mib)
			d.Must("mirror", "add-leg", "m", c, "--wait")
			if got := stateOf(t, d, "m").legs(); got != "a.img:in b.img:in c.img:in" {
				t.Errorf("after add-leg: %s", got)
			}
			d.Must("mirror", "rm-leg", "m", a) // the one that was the source
			if got := stateOf(t, d, "m").legs(); got != "b.img:in c.img:in" {
				t.Errorf("after rm-leg: %s", got)
			}
			d.Must("mirror", "replace-leg", "m", b, e)
			if got := stateOf(t, d, "m").legs(); got != "c.img:in e.img:in" {
				t.Errorf("after replace-leg: %s", got)
			}
			d.Must("mirror", "resync", "m", e, "--wait")
			d.Must("mirror", "scrub", "m", "--wait")
			stop()
			if st := stateOf(t, d, "m"); st.State != "in-sync" {
				t.Errorf("%+v", st)
			}
			for _, gone := range []string{a, b} {
				if exists(gone + ".dmfuse") {
					t.Errorf("the record beside %s is left", gone)
				}
			}
			d.Must("mirror", "rm", "m")
			equalFiles(t, c, e)
		})
	}
}

// A leg that fails is dropped before the write is answered; the mirror serves
// on, says so, and the leg comes back or is replaced.
func TestMirrorLegs_OneFails(t *testing.T) {
	d := harness.Start(t)
	a, b, c := d.Image("a.img", 8*mib), d.Image("b.img", 8*mib), d.Image("c.img", 8*mib)
	table := func(kind string) string { return fmt.Sprintf("0 %d %s", 8*mib/512, kind) }
	d.Must("create", "leg", "--table", table("linear "+b+" 0"))
	swap := func(kind string) {
		d.Must("load", "leg", "--table", table(kind))
		d.Must("suspend", "leg")
		d.Must("resume", "leg")
	}
	d.Must("mirror", "create", "m", a, "leg", "--wait")
	swap("error")
	stop := writers(t, d.Dev("m"), 8*mib)
	stop()
	st := stateOf(t, d, "m")
	if st.State != "degraded" || len(st.Degraded) != 1 || !strings.Contains(st.Degraded[0], "leg 1") || st.Mirror.Legs[1].State != "dropped" {
		t.Errorf("%+v", st)
	}
	for _, check := range [][]string{{"mirror", "status", "m", "--check"}, {"status", "m", "--check"}, {"mirror", "status", "m", "--wait"}} {
		if r := d.CLI(check...); r.Code != 6 {
			t.Errorf("%v: %v", check, r)
		}
	}
	if out := d.Must("mirror", "ls", "-n"); !strings.Contains(out, "degraded") || !strings.Contains(out, "leg(D)") {
		t.Errorf("ls: %s", out)
	}
	refused(t, d.CLI("mirror", "rm-leg", "m", "leg"), 1, "cannot have fewer")
	if r := d.CLI("mirror", "resync", "m", "leg"); r.Code != 1 || !strings.Contains(r.Stderr, "leg") {
		t.Errorf("a leg that does not work is filled: %v", r)
	}
	// It works again.
	swap("linear " + b + " 0")
	d.Must("mirror", "resync", "m", "leg", "--wait")
	d.Must("mirror", "status", "m", "--check")
	equalFiles(t, a, b)
	// It fails for good.
	swap("error")
	writeAt(t, d.Dev("m"), mib, "more")
	d.Must("mirror", "replace-leg", "m", "leg", c, "--wait")
	if got := stateOf(t, d, "m").legs(); got != "a.img:in c.img:in" {
		t.Errorf("after replace-leg: %s", got)
	}
	d.Must("mirror", "status", "m", "--check")
	equalFiles(t, a, c)
}

// A leg that was lost while no daemon ran: the mirror is refused, then made
// without it by force, and the leg that was away never wins.
func TestMirrorLegs_OneIsMissingAtAssembly(t *testing.T) {
	d := harness.Start(t)
	a, b, c := d.Image("a.img", 4*mib), d.Image("b.img", 4*mib), d.Image("c.img", 4*mib)
	d.Must("mirror", "create", "m", a, b, "--wait")
	writeAt(t, d.Dev("m"), 0, "old")
	d.Must("remove", "m")
	if err := os.Rename(a, a+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(a+".dmfuse", a+".away.dmfuse"); err != nil {
		t.Fatal(err)
	}
	unchanged(t, d, func() {
		refused(t, d.CLI("mirror", "create", "m", a, b), 1, a, "newest data", "--force")
	})
	d.Must("mirror", "create", "m", a, b, "--force")
	if st := stateOf(t, d, "m"); st.State != "degraded" || st.legs() != "a.img:dropped b.img:in" {
		t.Errorf("%+v", st)
	}
	writeAt(t, d.Dev("m"), 0, "new")
	d.Must("remove", "m")
	// It comes back, with the older data and as the first leg.
	for _, end := range []string{"", ".dmfuse"} {
		if err := os.Rename(a+".away"+end, a+end); err != nil {
			t.Fatal(err)
		}
	}
	d.Must("mirror", "create", "m", a, b, "--wait")
	if got := readAt(t, d.Dev("m"), 0, 3); got != "new" {
		t.Errorf("reads %q", got)
	}
	equalFiles(t, a, b)
	if got := readAt(t, a, 0, 3); got != "new" {
		t.Errorf("%s holds %q", a, got)
	}
	// What no record knows is not made up.
	refused(t, d.CLI("mirror", "add-leg", "m", d.Path("nosuch.img")), 1, "no such file")
	d.Must("mirror", "add-leg", "m", c, "--wait")
	equalFiles(t, a, c)
}

// When only a leg is left that lacks data, it is refused, and taken by force.
func TestMirrorLegs_OnlyTheStaleOneIsLeft(t *testing.T) {
	d := harness.Start(t)
	a, b, c := d.Image("a.img", 4*mib), d.Image("b.img", 4*mib), d.Image("c.img", 4*mib)
	d.Must("mirror", "create", "m", a, b, "--wait")
	writeAt(t, d.Dev("m"), 0, "old")
	d.Must("message", "m", "0", "drop", "1")
	writeAt(t, d.Dev("m"), 0, "new")
	d.Must("remove", "m")
	unchanged(t, d, func() {
		refused(t, d.CLI("mirror", "create", "m", b, c), 1, a, "--force")
		refused(t, d.CLI("mirror", "create", "m", b, c, "--region-size", "64k", "--force"), 1, "lacks data", "put another first")
	})
	if r := d.CLI("mirror", "create", "m", b, c, "--force", "--wait"); r.Code != 0 || !strings.Contains(r.Stderr, "insisted on") {
		t.Errorf("%v", r)
	}
	if got := readAt(t, d.Dev("m"), 0, 3); got != "old" {
		t.Errorf("reads %q", got)
	}
	d.Must("mirror", "rm", "m")
	equalFiles(t, b, c)
	if got := readAt(t, a, 0, 3); got != "new" {
		t.Errorf("the leg that was not there holds %q", got)
	}
	// Its record still knows that it has all; the leg that is new has other data.
	refused(t, d.CLI("mirror", "create", "m", a, c), 4, "differs from the file "+a+" at byte 0", "--force")
}

// A new leg that holds other data, or belongs to a mirror, is refused.
func TestMirrorLegs_NewOnesAreChecked(t *testing.T) {
	d := harness.Start(t)
	a, b, c := d.Image("a.img", 4*mib), d.Image("b.img", 4*mib), d.Image("c.img", 4*mib)
	x, y := d.Image("x.img", 4*mib), d.Image("y.img", 4*mib)
	small := d.Image("small.img", 4*mib-512)
	writeAt(t, a, 0, "data")
	writeAt(t, c, mib+3, "other")
	d.Must("mirror", "create", "m", a, b, "--wait")
	d.Must("mirror", "create", "n", x, y, "--wait")
	d.Must("mirror", "rm", "n", "--keep-log")
	d.Must("suspend", "m", "--noflush") // and again, so that its log is at rest
	d.Must("resume", "m")
	for _, r := range []struct {
		code int
		says string
		args []string
	}{
		{4, "differs from the device m at byte 1048579", []string{"add-leg", "m", c}},
		{4, "differs from the device m at byte 1048579", []string{"replace-leg", "m", b, c}},
		{4, "belongs to the mirror n", []string{"add-leg", "m", x}},
		{4, "is a leg of m already", []string{"add-leg", "m", b}},
		{1, "fewer than the 4194304", []string{"add-leg", "m", small}},
		{2, "of itself", []string{"add-leg", "m", "m"}},
		{3, "no leg of the mirror m", []string{"rm-leg", "m", c}},
		{3, "no leg of the mirror m", []string{"replace-leg", "m", c, c}},
		{1, "cannot have fewer", []string{"rm-leg", "m", b}},
		{3, `no device "nosuch"`, []string{"add-leg", "nosuch", c}},
	} {
		refused(t, d.CLI(append([]string{"mirror"}, r.args...)...), r.code, r.says)
	}
	if got := readAt(t, c, mib+3, 5); got != "other" {
		t.Errorf("the leg that was refused holds %q", got)
	}
	d.Must("mirror", "add-leg", "m", c, "--force", "--wait")
	d.Must("mirror", "rm", "m")
	equalFiles(t, a, b, c)
}

// What differs is found, named, and repaired from the leg the user names.
func TestMirror_Scrub(t *testing.T) {
	d := harness.Start(t)
	a, b := d.Image("a.img", 8*mib), d.Image("b.img", 8*mib)
	writeAt(t, a, 0, strings.Repeat("data", mib))
	d.Must("mirror", "create", "m", a, b, "--wait")
	d.Must("mirror", "scrub", "m", "--wait")
	writeAt(t, b, 3*mib, strings.Repeat("x", 1024)) // past the mirror
	writeAt(t, b, 5*mib+512, "y")
	r := d.CLI("mirror", "scrub", "m", "--wait")
	if r.Code != 6 || !strings.Contains(r.Stdout, "3145728") || !strings.Contains(r.Stdout, "5243392") || !strings.Contains(r.Stderr, "--repair") {
		t.Errorf("%v", r)
	}
	if r := d.CLI("mirror", "scrub", "m", "--report", "-J"); r.Code != 6 || !strings.Contains(r.Stdout, `"clean":false`) || !strings.Contains(r.Stdout, `"differing_ranges":2`) {
		t.Errorf("%v", r)
	}
	if got := readAt(t, b, 3*mib, 1); got != "x" {
		t.Errorf("a scrub without --repair changed leg 1: %q", got)
	}
	d.Must("mirror", "scrub", "m", "--repair", "--from", b, "--wait")
	equalFiles(t, b, a)
	if got := readAt(t, a, 3*mib, 1); got != "x" {
		t.Errorf("the repair did not copy from leg 1: %q", got)
	}
	d.Must("mirror", "scrub", "m", "--wait")
	refused(t, d.CLI("mirror", "scrub", "m", "--from", a), 2, "--repair")
	refused(t, d.CLI("mirror", "scrub", "m", "--stop"), 1, "no scrub is running")
	d.Must("mirror", "rm", "m")
}

// A mirror of a plain table line has no record that could say which leg is new:
// it gets none, and can be looked at and taken apart like others.
func TestMirrorLegs_OfAPlainTable(t *testing.T) {
	d := harness.Start(t)
	a, b, c, log := d.Image("a.img", 4*mib), d.Image("b.img", 4*mib), d.Image("c.img", 4*mib), d.Image("own.log", 4096)
	writeAt(t, a, 0, "data")
	d.Must("create", "m", "--table", fmt.Sprintf("0 %d mirror disk 2 %s 128 3 %s 0 %s 0 %s 0 1 handle_errors", 4*mib/512, log, a, b, c))
	d.Must("mirror", "status", "m", "--wait", "--check")
	equalFiles(t, a, b, c)
	refused(t, d.CLI("mirror", "add-leg", "m", d.Image("d.img", 4*mib)), 1, "made from a table line")
	refused(t, d.CLI("mirror", "replace-leg", "m", b, d.Path("d.img")), 1, "made from a table line")
	d.Must("mirror", "rm-leg", "m", c)
	writeAt(t, d.Dev("m"), mib, "more")
	d.Must("mirror", "scrub", "m", "--wait")
	d.Must("mirror", "rm", "m")
	equalFiles(t, a, b)
	if !exists(log) {
		t.Error("a log that mirror create did not make is deleted")
	}
}
