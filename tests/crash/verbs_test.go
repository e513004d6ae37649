package crash

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness/model"
	"golang.org/x/sys/unix"
)

// What people do to devices while their worker is killed: a verb is done, or it
// is not, or whoever typed it is told that no answer came and finds one of the
// two.

// verb runs a verb of dmfuse. cut says that the worker died over it.
func (c *clients) verb(args ...string) (cut bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.d.Binary(), append([]string{"--no-autostart"}, args...)...)
	cmd.Env = append(os.Environ(), c.d.Env()...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return false, nil
	case ctx.Err() != nil:
		return false, fmt.Errorf("dmfuse %s: no end within a minute\n%s", strings.Join(args, " "), out)
	case errors.As(err, &exit) && exit.ExitCode() == 5 && strings.Contains(string(out), "without an answer"),
		strings.Contains(string(out), "the daemon died over it"):
		return true, nil
	}
	return false, fmt.Errorf("dmfuse %s: %v\n%s", strings.Join(args, " "), err, out)
}

// until repeats a verb that may be done twice until its answer comes.
func (c *clients) until(args ...string) error {
	for {
		if cut, err := c.verb(args...); !cut {
			return err
		}
	}
}

// gone removes a device if it is there. That there is none is right where the
// worker died over the first try.
func (c *clients) gone(name string) error {
	list, err := c.shown(name)
	if err != nil || len(list) == 0 {
		return err
	}
	for tried := false; ; tried = true {
		cut, err := c.verb("remove", name)
		if tried && err != nil && strings.Contains(err.Error(), "no mapped device") {
			return nil
		}
		if !cut {
			return err
		}
	}
}

// shown lists which of the names are devices.
func (c *clients) shown(names ...string) (list []string, err error) {
	for _, n := range names {
		_, err := os.Stat(c.d.Dev(n))
		switch {
		case err == nil:
			list = append(list, n)
		case !errors.Is(err, os.ErrNotExist):
			return nil, err
		}
	}
	return list, nil
}

// swaps gives devices their tables anew, again and again, and suspends them in
// between. The tables of one device map the same.
func (c *clients) swaps(tables map[string][]string) {
	var names []string
	for name := range tables {
		names = append(names, name)
	}
	slices.Sort(names)
	turn := 0
	c.repeat("swaps", func() error {
		turn++
		for _, name := range names {
			list := tables[name]
			for cut := true; cut; {
				// A second table that waits for the same exceptions is refused.
				err := c.until("clear", name)
				if err == nil {
					cut, err = c.verb("load", name, "--table", list[turn%len(list)])
				}
				if err != nil {
					return err
				}
			}
			for _, verb := range []string{"resume", "suspend", "resume"} {
				if err := c.until(verb, name); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// resyncs has a mirror copy everything again.
func (c *clients) resyncs(name string) {
	c.repeat("resyncs", func() error {
		_, err := c.verb("message", name, "0", "resync")
		time.Sleep(50 * time.Millisecond) // sleep: so that it gets somewhere
		if err != nil && strings.Contains(err.Error(), "suspended") {
			return nil // somebody swaps its table
		}
		return err
	})
}

// groups takes snapshots of two devices at one instant again and again. All of a
// group are there or none; they show one instant; and what they show never
// changes, whatever is written to their origins.
func (c *clients) groups(a, b string, at int64) {
	c.counts(a, b, at)
	names := []string{"ga", "gb"}
	c.repeat("groups", func() error {
		cut, err := c.verb("snapshot", "create", "--group", "--force", a, names[0], b, names[1])
		if err != nil {
			return err
		}
		list, err := c.shown(names...)
		if err != nil {
			return err
		}
		if len(list) != 2 && (!cut || len(list) != 0) {
			return fmt.Errorf("of a group there is %q (the command had no answer: %t)", list, cut)
		}
		if len(list) == 0 {
			return nil
		}
		var was [2][sha256.Size]byte
		var counts [2]uint64
		for look := range 2 {
			for i, name := range names {
				content, err := os.ReadFile(c.d.Dev(name))
				if err != nil {
					return err
				}
				sum := sha256.Sum256(content)
				if look > 0 && sum != was[i] {
					return fmt.Errorf("the snapshot %s shows something else than before", name)
				}
				was[i], counts[i] = sum, binary.LittleEndian.Uint64(content[at:])
			}
		}
		if d := counts[0] - counts[1]; d > 1 {
			return fmt.Errorf("a group shows two instants: %d and %d", counts[0], counts[1])
		}
		for _, name := range names {
			if _, err := c.verb("snapshot", "rm", name); err != nil {
				return err
			}
			if err := c.gone(name); err != nil {
				return err
			}
		}
		return nil
	})
}

// counts writes one number after the other to both devices, to the second when
// the first has it.
func (c *clients) counts(a, b string, at int64) {
	n := uint64(0)
	c.repeat("counts", func() error {
		n++
		for _, name := range []string{a, b} {
			if err := writeDirect(c.d.Dev(name), binary.LittleEndian.AppendUint64(nil, n), at); err != nil {
				return err
			}
		}
		return nil
	})
}

// writeDirect writes a page that begins with b.
func writeDirect(path string, b []byte, at int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(page) }()
	copy(page, b)
	_, err = f.WriteAt(page, at)
	return err
}

// merging is an origin device into which one snapshot after the other is
// merged, with what it must show.
type merging struct {
	c       *clients
	rng     *rand.Rand
	dev     string
	sectors int64
	seed    atomic.Uint64
	m       *model.Model
	rounds  int

	beforeMerge func()
}

func (c *clients) merges(dev string, sectors int64, rng *rand.Rand) {
	c.t.Helper()
	c.repeat("merges", c.newMerging(dev, sectors, rng).round)
}

func (c *clients) newMerging(dev string, sectors int64, rng *rand.Rand) *merging {
	c.t.Helper()
	x := &merging{c: c, rng: rng, dev: dev, sectors: sectors, m: model.New(sectors, 1), beforeMerge: func() {}}
	x.seed.Store(1000)
	image := c.d.Path(dev + ".img")
	if err := os.WriteFile(image, x.m.Bytes(), 0o600); err != nil {
		c.t.Fatal(err)
	}
	c.d.Must("create", dev, "--table", fmt.Sprintf("0 %d snapshot-origin %s", sectors, image))
	return x
}

// round makes a snapshot, writes to both, merges it while the device is written,
// and compares.
func (x *merging) round() error {
	c, name := x.c, "ms"
	x.rounds++
	chunk := []string{"512", "4k", "64k"}[x.rounds%3]
	for there := false; !there; {
		if _, err := c.verb("snapshot", "create", x.dev, name, "--force", "--chunk-size", chunk); err != nil {
			return err
		}
		list, err := c.shown(name)
		if err != nil {
			return err
		}
		there = len(list) > 0
	}
	snap := x.m.Clone()
	for dev, m := range map[string]*model.Model{x.dev: x.m, name: snap} {
		if err := x.write(dev, m, 100, x.sectors); err != nil {
			return err
		}
	}
	if err := x.shows(name, snap); err != nil {
		return err
	}
	x.beforeMerge()
	if err := x.begin(name); err != nil {
		return err
	}
	x.m = snap
	if err := x.write(x.dev, x.m, 100, 512); err != nil { // some of it is being copied
		return err
	}
	if err := x.shows(x.dev, x.m); err != nil {
		return err
	}
	return x.end()
}

// begin begins the merge. One that got no answer has begun or not.
func (x *merging) begin(name string) error {
	for {
		args := []string{"snapshot", "merge", name}
		if x.rounds%2 == 0 { // so slow that writes meet what is being copied
			args = append(args, "--throttle", "8m/s")
		}
		cut, err := x.c.verb(args...)
		if !cut {
			return err
		}
		table, err := x.table()
		if err != nil {
			return err
		}
		list, err := x.c.shown(name)
		if err != nil || len(list) == 0 || strings.Contains(table, "snapshot-merge") {
			return err
		}
	}
}

// end waits until the merge is done and nothing of it is left.
func (x *merging) end() error {
	for limit := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) { // sleep: between looks, with a limit
		table, err := x.table()
		if err != nil {
			return err
		}
		left, err := filepath.Glob(x.c.d.Run + "/merges/*")
		if err != nil {
			return err
		}
		if strings.Contains(table, "snapshot-origin") && len(left) == 0 {
			return x.shows(x.dev, x.m)
		}
		if time.Now().After(limit) {
			return fmt.Errorf("a merge has no end: the table is %q, its records are %q", table, left)
		}
	}
}

func (x *merging) table() (string, error) {
	cmd := exec.Command(x.c.d.Binary(), "--no-autostart", "table", x.dev)
	cmd.Env = append(os.Environ(), x.c.d.Env()...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("dmfuse table %s: %w\n%s", x.dev, err, stderr.Bytes())
	}
	return string(out), nil
}

// write makes n writes to the first sectors, some of them durable.
func (x *merging) write(dev string, m *model.Model, n int, sectors int64) error {
	f, err := os.OpenFile(x.c.d.Dev(dev), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	w := writer{rng: x.rng, parts: 1, sectors: sectors}
	for i := range n {
		start, count := w.next()
		seed := x.seed.Add(1)
		if _, err := f.WriteAt(model.Pattern(seed, start, count), start*sector); err != nil {
			f.Close()
			return fmt.Errorf("write to %s: %w", dev, err)
		}
		m.Write(seed, start, count)
		if i%16 == 15 {
			if err := f.Sync(); err != nil {
				f.Close()
				return fmt.Errorf("sync of %s: %w", dev, err)
			}
		}
	}
	return f.Close()
}

// shows compares a device with its model: what was answered is there, and every
// write was.
func (x *merging) shows(dev string, m *model.Model) error {
	content, err := os.ReadFile(x.c.d.Dev(dev))
	if err != nil {
		return err
	}
	if err := m.Check(content, 0); err != nil {
		return fmt.Errorf("%s: %w", dev, err)
	}
	return nil
}

// checkAll looks at every store and log of the test when nobody uses them.
func (c *clients) checkAll() {
	c.t.Helper()
	cows, err := filepath.Glob(c.d.Path("*.cow"))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, cow := range cows {
		if fi, err := os.Stat(cow); err != nil || fi.Size() == 0 {
			continue
		}
		if r := c.d.CLI("cow", "check", cow); r.Code != 0 && !isEmptyStore(c, cow) {
			c.t.Errorf("%v", r)
		}
	}
	logs, err := filepath.Glob(c.d.Path("log*"))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, log := range logs {
		if r := c.d.CLI("log", "check", log); r.Code != 0 {
			c.t.Errorf("%v", r)
		}
	}
}

// isEmptyStore says that nobody has begun to use the file.
func isEmptyStore(c *clients, path string) bool {
	b := readFile(c.t, path)
	return len(b) < sector || bytes.Equal(b[:sector], make([]byte, sector))
}
