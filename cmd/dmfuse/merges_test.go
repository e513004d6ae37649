package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/control/server"
	"github.com/dmfuse/dmfuse/mapper"
	"github.com/dmfuse/dmfuse/snapshot"
	"github.com/dmfuse/dmfuse/target"
	"github.com/sirupsen/logrus"
)

// TestMergeRecords_Unfinished: a record over which a daemon died is gone when the
// next one begins, and nothing else is.
func TestMergeRecords_Unfinished(t *testing.T) {
	dir := t.TempDir()
	r := &mergeRecord{Device: 21, Name: "monday", COW: "/nosuch"}
	if err := r.write(dir); err != nil {
		t.Fatal(err)
	}
	f, err := blockdev.CreateUnfinished(r.path(dir))
	if err == nil {
		_, err = f.WriteString("{")
	}
	if err := errors.Join(err, f.Close(), os.WriteFile(filepath.Join(dir, "20.json.bad"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	list, problems := readMergeRecords(dir)
	if len(list) != 1 || list[0].Device != 21 || len(problems) > 0 {
		t.Errorf("%v, %v", list, problems)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if want := []string{filepath.Join(dir, "20.json.bad"), r.path(dir)}; err != nil || !slices.Equal(left, want) {
		t.Errorf("there is %q (%v), want %q", left, err, want)
	}
}

// mergeRig is a daemon without a mount: an origin device disk over a file, a
// snapshot monday of it, and another one.
type mergeRig struct {
	t       *testing.T
	dir     string
	manager *mapper.Manager
	server  *server.Server
	merges  *merges
	log     lockedText

	origin, cow string
	base        bool // without an origin device
	old, want   []byte
}

func newMergeRig(t *testing.T, base bool) *mergeRig {
	t.Helper()
	r := &mergeRig{t: t, dir: t.TempDir(), base: base}
	r.origin = filepath.Join(r.dir, "disk.img")
	r.cow = r.origin + ".monday.cow"
	r.old = bytes.Repeat([]byte("before. "), 1<<17)
	for path, b := range map[string][]byte{r.origin: r.old, r.cow: nil, r.origin + ".other.cow": nil} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if b == nil {
			if err := os.Truncate(path, 4<<20); err != nil {
				t.Fatal(err)
			}
		}
	}
	p, err := fileAt(r.cow)
	if err != nil {
		t.Fatal(err)
	}
	if err := snapshot.WriteSidecar(r.cow, snapshot.Sidecar{Name: "monday", Inode: p.stat.Ino, CreatedByUs: true}); err != nil {
		t.Fatal(err)
	}
	r.start()
	if !base {
		r.create("disk", "snapshot-origin", r.origin)
	}
	r.create("monday", "snapshot", r.origin, r.cow, "P", "8")
	r.create("other", "snapshot", r.origin, r.origin+".other.cow", "P", "16")
	if base {
		for _, name := range []string{"monday", "other"} {
			if err := r.manager.GuardBase(r.device(name), r.origin); err != nil {
				t.Skipf("no leases here: %v", err)
			}
		}
	}
	r.write("monday", "mine, the new", 4096*3)
	r.write("monday", "mine as well", 4096*100)
	r.want = r.read("monday")
	return r
}

// start starts a daemon, also over what one before left.
func (r *mergeRig) start() {
	r.t.Helper()
	log := logrus.New()
	log.SetOutput(&r.log)
	pool := blockdev.NewPool(blockdev.PoolOptions{})
	types := target.NewSet(snapshot.NewGroup(snapshot.Options{Log: log}).Types()...)
	var err error
	r.manager, err = mapper.New(mapper.Options{Types: types, Pool: pool, Guard: pool.Guard, Log: log, Major: 200, StateDir: filepath.Join(r.dir, "state")})
	if err != nil {
		r.t.Fatal(err)
	}
	problems, err := r.manager.Restore(context.Background())
	if err != nil || len(problems) > 0 {
		r.t.Fatal(err, problems)
	}
	r.merges = newMerges(r.manager, filepath.Join(r.dir, "merges"), log)
	r.server = server.New(server.Options{Manager: r.manager, Version: func() control.Version { return control.Version{} }, Log: log, Merges: r.merges})
}

// kill ends the daemon and leaves the records as they are.
func (r *mergeRig) kill() {
	r.t.Helper()
	r.merges.close()
	if err := r.manager.Abandon(context.Background()); err != nil {
		r.t.Fatal(err)
	}
}

func (r *mergeRig) device(name string) *mapper.Device {
	r.t.Helper()
	d, err := r.manager.Device(mapper.ByName(name))
	if err != nil {
		r.t.Fatal(err)
	}
	return d
}

func (r *mergeRig) create(name string, words ...string) {
	r.t.Helper()
	line := control.Line{Length: uint64(len(r.old) / 512), Type: words[0], Args: words[1:]}
	if _, err := r.server.Apply(context.Background(), deviceSteps(name, line, false)); err != nil {
		r.t.Fatal(err)
	}
}

func (r *mergeRig) write(name, text string, at int64) {
	r.t.Helper()
	if _, err := r.device(name).WriteAt(context.Background(), []byte(text), at, false); err != nil {
		r.t.Fatal(err)
	}
}

func (r *mergeRig) read(name string) []byte {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	b := make([]byte, len(r.old))
	if _, err := r.device(name).ReadAt(ctx, b, 0); err != nil && err != io.EOF {
		r.t.Fatalf("%s: %v", name, err)
	}
	return b
}

// shows fails if a device shows something else.
func (r *mergeRig) shows(name string, want []byte) {
	r.t.Helper()
	if !bytes.Equal(r.read(name), want) {
		r.t.Errorf("%s does not show what it must", name)
	}
}

// carrier is the device that the merge goes to.
func (r *mergeRig) carrier() string {
	if r.base {
		return "monday"
	}
	return "disk"
}

func (r *mergeRig) begin(keep bool) error {
	_, err := r.merges.Begin(context.Background(), control.MergeRequest{Snapshot: "monday", Device: r.carrier(), KeepCOW: keep})
	return err
}

// ends waits until no merge is left, and checks that all is as it must be then.
func (r *mergeRig) ends(keep bool) {
	r.t.Helper()
	for limit := time.Now().Add(20 * time.Second); len(r.merges.list()) > 0; {
		if time.Now().After(limit) {
			r.t.Fatalf("the merge does not end: %+v\n%s", r.merges.List(), r.log.String())
		}
		<-time.After(2 * time.Millisecond)
	}
	line, _ := onlyLine(r.device(r.carrier()), false)
	if line.Type != "snapshot-origin" {
		r.t.Errorf("the table in the end is %v", line)
	}
	r.shows(r.carrier(), r.want)
	r.shows("other", r.old)
	if b, err := os.ReadFile(r.origin); err != nil || !bytes.Equal(b, r.want) {
		r.t.Errorf("the file of the origin is not as it must be: %v", err)
	}
	if _, err := r.manager.Device(mapper.ByName("monday")); !r.base && err == nil {
		r.t.Error("the snapshot is still there")
	}
	if left, _ := filepath.Glob(filepath.Join(r.dir, "merges", "*")); len(left) > 0 {
		r.t.Errorf("records left: %q", left)
	}
	side, err := snapshot.ReadSidecar(r.cow)
	_, stat := os.Stat(r.cow)
	switch {
	case keep && (err != nil || stat != nil || side.Merging != nil || side.Closed == nil):
		r.t.Errorf("kept: %v %v %+v", stat, err, side)
	case !keep && (!isMissing(err) || !isMissing(stat)):
		r.t.Errorf("the COW is still there: %v %v", stat, err)
	}
	// The other snapshot is still protected.
	r.write(r.carrier(), "written later", 4096*50)
	r.shows("other", r.old)
}

func TestMerges(t *testing.T) {
	for _, base := range []bool{false, true} {
		for _, keep := range []bool{false, true} {
			t.Run(fmt.Sprintf("base=%v keep=%v", base, keep), func(t *testing.T) {
				r := newMergeRig(t, base)
				r.merges.start(r.server.Apply)
				if err := r.begin(keep); err != nil {
					t.Fatal(err)
				}
				r.shows(r.carrier(), r.want)
				r.ends(keep)
				r.kill()
			})
		}
	}
}

// A daemon that is killed between any two steps of a merge: either it had not
// begun, and everything is as before, or it goes on to its end.
func TestMerges_KilledBetweenSteps(t *testing.T) {
	for _, base := range []bool{false, true} {
		for at := 0; ; at++ {
			if !mergeKilledAt(t, base, at) {
				break
			}
		}
	}
}

func mergeKilledAt(t *testing.T, base bool, at int) (more bool) {
	r := newMergeRig(t, base)
	ctx := context.Background()
	r.merges.apply = r.server.Apply
	s, d, line, err := r.merges.check(context.Background(), control.MergeRequest{Snapshot: "monday", Device: r.carrier()})
	if err != nil {
		t.Fatal(err)
	}
	rec := &mergeRecord{Device: d.Serial(), Snapshot: s.Serial(), Name: "monday", COW: line.Args[1], Time: time.Now()}
	steps := []func(){func() {
		if err := r.merges.prepare(rec, s, d, line, ""); err != nil {
			t.Fatal(err)
		}
	}}
	for _, st := range mergeSteps(s, d, line) {
		steps = append(steps, func() {
			if _, err := r.server.Apply(ctx, []control.Step{st}); err != nil {
				t.Fatal(err)
			}
		})
	}
	begins := len(steps) // from here on the device shows the data
	steps = append(steps,
		func() { rec = r.merges.begun(ctx, rec) },
		func() {
			for mergeState(ctx, d) != "merged" {
				<-time.After(time.Millisecond)
			}
		},
		func() {
			line, _ := onlyLine(d, false)
			if err := d.Load(ctx, []mapper.Line{{Length: line.Length, Type: "snapshot-origin", Args: line.Args[:1]}}, false); err != nil {
				t.Fatal(err)
			}
		},
		func() {
			if err := d.Resume(ctx, mapper.SuspendOptions{}); err != nil {
				t.Fatal(err)
			}
		},
		func() {
			if _, err := rec.tidyStore(r.origin); err != nil {
				t.Fatal(err)
			}
		})
	name := fmt.Sprintf("base=%v after %d steps", base, at)
	t.Run(name, func(t *testing.T) {
		r.t = t
		for _, step := range steps[:at] {
			step()
		}
		r.kill()
		r.start()
		r.merges.start(r.server.Apply)
		if at < begins {
			if list := r.merges.list(); len(list) > 0 {
				t.Errorf("a merge that had not begun is left: %+v", list)
			}
			r.shows("monday", r.want)
			if !base {
				r.shows("disk", r.old)
			}
			if side, err := snapshot.ReadSidecar(r.cow); err != nil || side.Merging != nil {
				t.Errorf("sidecar: %+v %v", side, err)
			}
			if base && (!r.manager.Guards(r.device("monday"), r.origin) || !r.manager.Guards(r.device("other"), r.origin)) {
				t.Error("the base is not watched any more")
			}
			if err := r.begin(false); err != nil {
				t.Fatal(err)
			}
		}
		r.ends(false)
		r.kill()
	})
	return at < len(steps)
}

// A merge that cannot begin leaves everything as it was.
func TestMerges_Refused(t *testing.T) {
	r := newMergeRig(t, false)
	r.merges.start(r.server.Apply)
	refused := func(code control.Code, text string) {
		t.Helper()
		err := r.begin(false)
		if errorCode(err) != code || !strings.Contains(fmt.Sprint(err), text) {
			t.Errorf("%v, expected %s with %q", err, code, text)
		}
		if len(r.merges.list()) > 0 {
			t.Error("a record is left")
		}
		r.shows("monday", r.want)
		r.shows("disk", r.old)
	}
	monday, disk := r.device("monday"), r.device("disk")
	if err := monday.Open(false); err != nil {
		t.Fatal(err)
	}
	refused(control.CodeBusy, "open")
	monday.Release()
	// The last step fails, when the merge is loaded already.
	if err := os.Rename(r.cow, r.cow+".away"); err != nil {
		t.Fatal(err)
	}
	if err := r.begin(false); err == nil || len(r.merges.list()) > 0 {
		t.Errorf("without a COW file: %v, %+v", err, r.merges.list())
	}
	if err := os.Rename(r.cow+".away", r.cow); err != nil {
		t.Fatal(err)
	}
	if disk.Info(false).Inactive || monday.Info(false).Suspended {
		t.Error("steps are not taken back")
	}
	line, _ := onlyLine(disk, false)
	if err := disk.Load(context.Background(), []mapper.Line{line}, false); err != nil {
		t.Fatal(err)
	}
	refused(control.CodeBusy, "inactive table")
	if err := disk.Clear(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.merges.Begin(context.Background(), control.MergeRequest{Snapshot: "monday", Device: "other"}); errorCode(err) != control.CodeInvalid {
		t.Errorf("not its origin: %v", err)
	}
	if err := r.begin(false); err != nil {
		t.Fatal(err)
	}
	r.ends(false)
	r.kill()
}

// A record that cannot be read is moved aside; one whose device is gone is
// forgotten; a device that has another table is left alone.
func TestMerges_Records(t *testing.T) {
	r := newMergeRig(t, false)
	dir := filepath.Join(r.dir, "merges")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"7.json": "{", "8.json": `{"version":9,"device":8}`, "9.json": `{"version":1,"device":9,"begun":true}`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.kill()
	r.start()
	r.merges.start(r.server.Apply)
	if list := r.merges.list(); len(list) > 0 {
		t.Errorf("%+v", list)
	}
	left, _ := filepath.Glob(filepath.Join(dir, "*"))
	if len(left) != 2 || !strings.HasSuffix(left[0], "7.json.bad") || !strings.HasSuffix(left[1], "8.json.bad") {
		t.Errorf("left: %q", left)
	}
	r.kill()
}

// A store that is not empty is never deleted: somebody else has given the device
// its plain table.
func TestMerges_StoreInUseIsKept(t *testing.T) {
	r := newMergeRig(t, false)
	p, err := fileAt(r.cow)
	if err != nil {
		t.Fatal(err)
	}
	rec := &mergeRecord{COW: r.cow, Inode: p.stat.Ino}
	r.kill()
	if deleted, err := rec.tidyStore(r.origin); deleted || err == nil || !strings.Contains(err.Error(), "still holds 2 chunks") {
		t.Errorf("%v %v", deleted, err)
	}
	rec.Inode++
	if deleted, err := rec.tidyStore(r.origin); deleted || err != nil {
		t.Errorf("another file: %v %v", deleted, err)
	}
	if _, err := os.Stat(r.cow); err != nil {
		t.Error(err)
	}
}

// lockedText is a log that several goroutines write.
type lockedText struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
