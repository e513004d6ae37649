package mapper

import (
	"bytes"
	"context"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/faultrule"
)

// mustFault adds rules and returns their IDs.
func mustFault(t *testing.T, d *Device, text string) []int {
	t.Helper()
	rules, err := faultrule.ParseAll(text)
	if err != nil {
		t.Fatal(err)
	}
	_, ids, err := d.ChangeFaults(FaultChange{Add: rules})
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

func mustClear(t *testing.T, d *Device, ids ...int) {
	t.Helper()
	if _, _, err := d.ChangeFaults(FaultChange{Clear: ids, ClearAll: len(ids) == 0}); err != nil {
		t.Fatal(err)
	}
}

func mustWrite(t *testing.T, d *Device, c byte, off int64, n int) {
	t.Helper()
	if _, err := d.WriteAt(limit(t), filled(c, n), off, false); err != nil {
		t.Fatal(err)
	}
}

// wantBytes checks that n bytes at off are all c.
func wantBytes(t *testing.T, what string, d *Device, c byte, off int64, n int) {
	t.Helper()
	p := make([]byte, n)
	if _, err := d.ReadAt(limit(t), p, off); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if !bytes.Equal(p, filled(c, n)) {
		t.Errorf("%s: byte %d is not %d", what, bytes.IndexFunc(p, func(r rune) bool { return r != rune(c) }), c)
	}
}

// Each operation fails with the error of its rule, with nothing done, and only
// in its place.
func TestFaults_Errno(t *testing.T) {
	m, disks := newManager(t, nil)
	d := mustCreate(t, m, "d", "0 64 linear 7:0 0")
	ctx := limit(t)
	mustFault(t, d, "read sectors=8+8 errno=EIO; write sectors=16+8 errno=ENOSPC; flush errno=EROFS; discard errno=ETIMEDOUT")
	p := make([]byte, 512)
	_, err := d.ReadAt(ctx, p, 4096)
	wantKind(t, "read", err, blockdev.ErrIO)
	_, err = d.ReadAt(ctx, make([]byte, 4097), 0)
	wantKind(t, "read that touches the place", err, blockdev.ErrIO)
	_, err = d.ReadAt(ctx, p, 0)
	wantKind(t, "read beside it", err, nil)
	_, err = d.WriteAt(ctx, filled(1, 8192), 4096, false)
	wantKind(t, "write", err, blockdev.ErrNoSpace)
	if !bytes.Equal(disks.content("7:0")[:8192], make([]byte, 8192)) {
		t.Error("a write that fails has done something")
	}
	wantKind(t, "zero", d.Zero(ctx, 8192, 512, true), blockdev.ErrNoSpace)
	wantKind(t, "flush", d.Flush(ctx), blockdev.ErrReadOnly)
	wantKind(t, "discard", d.Discard(ctx, 0, 512), blockdev.ErrTimeout)
	if err := d.Suspend(ctx, SuspendOptions{}); err != nil {
		t.Errorf("the flush of a suspend meets a rule: %v", err)
	}
	mustResume(t, d)
	mustClear(t, d)
	if d.faults.Load() != nil {
		t.Error("a device without rules pays for them")
	}
	wantKind(t, "flush after clear", d.Flush(ctx), nil)
}

// A rule makes two events: its first hit and its last.
func TestFaults_Events(t *testing.T) {
	m, _ := newManager(t, nil)
	d := mustCreate(t, m, "d", "0 64 linear 7:0 0")
	events, cancel := m.Subscribe()
	defer cancel()
	mustFault(t, d, "write count=3 errno=EIO; read nth=2 corrupt")
	for range 9 {
		_, _ = d.WriteAt(limit(t), make([]byte, 512), 0, false)
		_, _ = d.ReadAt(limit(t), make([]byte, 512), 512)
	}
	m.hub.close()
	var got []string
	for e := range events {
		got = append(got, string(e.Kind)+" "+e.Text)
	}
	want := []string{
		"fault rule 1 (write count=3 errno=EIO): first hit: write of 512 bytes at byte 0",
		"fault rule 2 (read nth=2 seed=SEED corrupt=bits:1): only hit, the rule has ended: read of 512 bytes at byte 512",
		"fault rule 1 (write count=3 errno=EIO): hit 3, the rule has ended: write of 512 bytes at byte 0",
	}
	for i := range got {
		if a, b, ok := strings.Cut(got[i], "seed="); ok {
			_, rest, _ := strings.Cut(b, " ")
			got[i] = a + "seed=SEED " + rest
		}
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("events:\n%s", strings.Join(got, "\n"))
	}
	list := d.Faults()
	if list[0].Hits != 3 || !list[0].Ended || list[1].Seen != 2 || list[1].Hits != 1 {
		t.Errorf("%+v", list)
	}
}

func TestFaults_Delay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _ := newManager(t, nil)
		d := mustCreate(t, m, "d", "0 64 linear 7:0 0")
		mustFault(t, d, "read delay=5s; read nth=2 delay=1s..2s; write delay=1h")
		begin := time.Now()
		wantBytes(t, "read", d, 0, 0, 512)
		if took := time.Since(begin); took != 5*time.Second {
			t.Errorf("a read took %v", took)
		}
		begin = time.Now()
		wantBytes(t, "read", d, 0, 0, 512)
		if took := time.Since(begin); took < 6*time.Second || took > 7*time.Second {
			t.Errorf("a read with two delays took %v", took)
		}
		done := later(func() error { _, err := d.WriteAt(context.Background(), filled(1, 512), 0, false); return err })
		synctest.Wait()
		begin = time.Now()
		mustClear(t, d)
		if err := <-done; err != nil || time.Since(begin) != 0 {
			t.Errorf("a delayed write after clear: %v after %v", err, time.Since(begin))
		}
	})
}

// A request that hangs keeps nobody else from anything, and goes on with the
// table of then.
func TestFaults_HangIsOutside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, disks := newManager(t, nil)
		ctx := context.Background()
		d := mustCreate(t, m, "d", "0 64 linear 7:0 0")
		ids := mustFault(t, d, "write hang; flush hang errno=EIO")
		write := later(func() error { _, err := d.WriteAt(ctx, filled(7, 512), 0, false); return err })
		flush := later(func() error { return d.Flush(ctx) })
		synctest.Wait()
		if list := d.Faults(); list[0].Hanging != 1 || list[1].Hanging != 1 {
			t.Errorf("%+v", list)
		}
		mustLoad(t, d, "0 64 linear 7:1 0")
		if err := d.Resume(ctx, SuspendOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := m.Rename("d", "e"); err != nil {
			t.Fatal(err)
		}
		mustClear(t, d, ids[0])
		if err := <-write; err != nil {
			t.Errorf("the write after clear: %v", err)
		}
		if disks.content("7:1")[0] != 7 || disks.content("7:0")[0] != 0 {
			t.Error("the write did not go to the new table")
		}
		if list := d.Faults(); len(list) != 1 || list[0].Hanging != 1 {
			t.Errorf("after a swap and a rename: %+v", list)
		}
		mustClear(t, d)
		wantKind(t, "a flush that hung and then fails", <-flush, blockdev.ErrIO)
	})
}

// What ends a hang: the caller, the end of the device, the end of the manager.
func TestFaults_HangEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _ := newManager(t, nil)
		for _, name := range []string{"gone", "low"} {
			mustFault(t, mustCreate(t, m, name, "0 64 linear 7:0 0"), "read hang")
		}
		gone, _ := m.Device(ByName("gone"))
		low, _ := m.Device(ByName("low"))
		top := mustCreate(t, m, "top", "0 64 linear low 0")
		read := func(ctx context.Context, d *Device) <-chan error {
			c := later(func() error { _, err := d.ReadAt(ctx, make([]byte, 512), 0); return err })
			synctest.Wait()
			return c
		}
		ctx, cancel := context.WithCancel(context.Background())
		killed := read(ctx, gone)
		cancel()
		wantKind(t, "a caller that is killed", <-killed, blockdev.ErrInterrupted)

		left := read(context.Background(), gone)
		if _, err := m.Remove(context.Background(), ByName("gone"), RemoveOptions{}); err != nil {
			t.Fatal(err)
		}
		wantKind(t, "a device that is removed", <-left, blockdev.ErrIO)

		// A suspend of the device above waits for what hangs below, with its
		// context.
		above := read(context.Background(), top)
		ctx, cancel = context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		wantKind(t, "suspend above a hang", top.Suspend(ctx, SuspendOptions{}), blockdev.ErrTimeout)
		below := read(context.Background(), low)
		if err := m.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		wantKind(t, "above, at shutdown", <-above, blockdev.ErrIO)
		wantKind(t, "below, at shutdown", <-below, blockdev.ErrIO)
		_, _, err := low.ChangeFaults(FaultChange{ClearAll: true})
		wantKind(t, "a rule on a device that is gone", err, blockdev.ErrNoAddress)
	})
}

func TestFaults_DropTearCorrupt(t *testing.T) {
	m, disks := newManager(t, nil)
	d := mustCreate(t, m, "d", "0 64 linear 7:0 0\n64 64 linear 7:1 0")
	low := func() []byte {
		return append(bytes.Clone(disks.content("7:0")[:64*512]), disks.content("7:1")[:64*512]...)
	}
	ctx := limit(t)

	mustFault(t, d, "write,flush,discard drop")
	mustWrite(t, d, 1, 0, 65536)
	if err := d.Zero(ctx, 0, 512, false); err != nil {
		t.Error(err)
	}
	if err := d.Discard(ctx, 0, 512); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(low(), make([]byte, 65536)) {
		t.Error("a dropped write was done")
	}
	mustClear(t, d)

	for _, rule := range []string{"write tear=512 seed=3", "write tear=4096 seed=3 errno=EIO"} {
		mustFault(t, d, rule)
		n, err := d.WriteAt(ctx, filled(2, 60000), 100, false) // over the border of the targets
		if fails := strings.Contains(rule, "errno"); fails != (err != nil) || fails && n != 0 || !fails && n != 60000 {
			t.Errorf("%s: %d, %v", rule, n, err)
		}
		if got := bytes.Count(low(), []byte{2}); got == 0 || got >= 60000 {
			t.Errorf("%s: %d bytes landed", rule, got)
		}
		mustClear(t, d)
		if err := d.Zero(ctx, 0, 65536, false); err != nil {
			t.Fatal(err)
		}
	}

	mine := filled(0, 4096)
	mustFault(t, d, "write sectors=2+1 corrupt=bytes:3 seed=1")
	if _, err := d.WriteAt(ctx, mine, 0, false); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(mine, filled(0, 4096)) {
		t.Error("the data of the caller was changed")
	}
	place := low()[1024:1536]
	if changed := 4096 - bytes.Count(low()[:4096], []byte{0}); changed != 3 || 512-bytes.Count(place, []byte{0}) != 3 {
		t.Errorf("%d bytes were changed", changed)
	}
	mustClear(t, d)
	mustFault(t, d, "read sectors=8+1 corrupt=bits:1 seed=1")
	p := make([]byte, 4096)
	if _, err := d.ReadAt(ctx, p, 4096); err != nil || bytes.Count(p, []byte{0}) != 4095 {
		t.Errorf("a corrupted read: %v", err)
	}
	if !bytes.Equal(low()[4096:8192], make([]byte, 4096)) {
		t.Error("a corrupted read has changed the disk")
	}
}

// With drop=until-flush a device is a disk with a volatile cache.
func TestFaults_UntilFlush(t *testing.T) {
	m, disks := newManager(t, nil)
	ctx := limit(t)
	d := mustCreate(t, m, "d", "0 64 linear 7:0 0")
	low := func(at int) byte { return disks.content("7:0")[at] }
	rule := mustFault(t, d, "write drop=until-flush")
	mustWrite(t, d, 1, 0, 4096)
	mustWrite(t, d, 2, 1024, 512) // over it
	wantBytes(t, "before the flush", d, 2, 1024, 512)
	wantBytes(t, "after the piece", d, 1, 1536, 2560)
	if low(0) != 0 || low(1024) != 0 || d.Faults()[0].Kept != 4096 {
		t.Errorf("not kept back: %+v", d.Faults())
	}
	if n, hole, err := d.Extent(ctx, 0); hole || n != 64*512 || err != nil {
		t.Errorf("an extent over what is kept: %d %v %v", n, hole, err)
	}
	if err := d.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if low(0) != 1 || low(1024) != 2 || low(1536) != 1 || d.Faults()[0].Kept != 0 {
		t.Errorf("a flush does not write out: %+v", d.Faults())
	}

	mustWrite(t, d, 3, 0, 512)
	if _, err := d.WriteAt(ctx, filled(4, 512), 4096, true); err != nil || low(4096) != 4 || low(0) != 1 {
		t.Errorf("a durable write: %v, disk %d %d", err, low(4096), low(0))
	}
	if err := d.Suspend(ctx, SuspendOptions{NoFlush: true}); err != nil || low(0) != 1 {
		t.Errorf("suspend --noflush: %v, disk %d", err, low(0))
	}
	mustResume(t, d)
	wantBytes(t, "after suspend --noflush", d, 3, 0, 512)
	if err := d.Suspend(ctx, SuspendOptions{}); err != nil || low(0) != 3 {
		t.Errorf("suspend: %v, disk %d", err, low(0))
	}
	mustResume(t, d)

	mustWrite(t, d, 5, 0, 512)
	if err := d.Zero(ctx, 256, 256, false); err != nil {
		t.Fatal(err)
	}
	wantBytes(t, "zeroed, kept too", d, 0, 256, 256)
	mustClear(t, d, rule...)
	wantBytes(t, "after the power cut", d, 3, 0, 512)
}

// What is full is written out first.
func TestFaults_UntilFlushIsBounded(t *testing.T) {
	m, disks := newManager(t, nil)
	d := mustCreate(t, m, "d", "0 64 linear 7:0 0")
	mustFault(t, d, "write drop=until-flush")
	mustWrite(t, d, 1, 0, 512)
	k := d.faults.Load().kept
	k.mu.Lock()
	k.bytes += maxKept // as if there were much more
	k.mu.Unlock()
	mustWrite(t, d, 2, 512, 512)
	if got := disks.content("7:0"); got[0] != 1 || got[512] != 0 {
		t.Errorf("disk: %d %d, want 1 0", got[0], got[512])
	}
	k.mu.Lock()
	k.bytes -= maxKept
	k.mu.Unlock()
}

// The rules come back after a kill, with their numbers and counts; rules that
// come later have new numbers.
func TestFaults_Restart(t *testing.T) {
	x := newMachine(t)
	m, _ := x.start()
	d := mustCreate(t, m, "d", "0 8 linear 7:0 0")
	mustFault(t, d, "read errno=EIO; write nth=2 errno=EIO; read p=0.5 corrupt")
	mustClear(t, d, 1, 3)
	mustFault(t, d, "flush drop")
	mustWrite(t, d, 1, 0, 512)
	kill(m)
	m, problems := x.start()
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	d, err := m.Device(ByName("d"))
	if err != nil {
		t.Fatal(err)
	}
	list := d.Faults()
	if len(list) != 2 || list[0].ID != 2 || list[0].Rule != "write nth=2 errno=EIO" || list[0].Seen != 1 || list[1].ID != 4 {
		t.Errorf("%+v", list)
	}
	_, err = d.WriteAt(limit(t), make([]byte, 512), 0, false)
	wantKind(t, "the second write, after the restart", err, blockdev.ErrIO)
	mustWrite(t, d, 1, 0, 512)
	mustClear(t, d)
	if ids := mustFault(t, d, "read hang"); ids[0] != 5 {
		t.Errorf("number %d, want 5", ids[0])
	}
}

// What cannot be recorded is not armed.
func TestFaults_RecordedOrNotArmed(t *testing.T) {
	x := newMachine(t)
	m, _ := x.start()
	d := mustCreate(t, m, "d", "0 8 linear 7:0 0")
	mustFault(t, d, "read errno=EIO")
	if err := os.Rename(x.state, x.state+".away"); err != nil {
		t.Fatal(err)
	}
	rules, _ := faultrule.ParseAll("write errno=EIO")
	if _, _, err := d.ChangeFaults(FaultChange{ClearAll: true, Add: rules}); err == nil {
		t.Error("a rule is set that a restart would not know")
	}
	if err := os.Rename(x.state+".away", x.state); err != nil {
		t.Fatal(err)
	}
	if list := d.Faults(); len(list) != 1 || list[0].Rule != "read errno=EIO" {
		t.Errorf("%+v", list)
	}
	mustWrite(t, d, 1, 0, 512)
}

func TestFaults_ChangeIsAllOrNothing(t *testing.T) {
	m, _ := newManager(t, nil)
	d := mustCreate(t, m, "d", "0 8 linear 7:0 0")
	mustFault(t, d, "read errno=EIO; write errno=EIO")
	rules, _ := faultrule.ParseAll("flush drop")
	_, _, err := d.ChangeFaults(FaultChange{Clear: []int{1, 9}, Add: rules})
	wantKind(t, "a rule that there is not", err, blockdev.ErrInvalid)
	_, _, err = d.ChangeFaults(FaultChange{Clear: []int{1}, Add: make([]faultrule.Rule, maxFaults)})
	wantKind(t, "too many rules", err, blockdev.ErrInvalid)
	if list := d.Faults(); len(list) != 2 {
		t.Errorf("%+v", list)
	}
}

// Every request that begins after the call meets the rule, and none that begins
// after the clear.
func TestFaults_ArmedWhenTheCallReturns(t *testing.T) {
	m, _ := newManager(t, nil)
	d := mustCreate(t, m, "d", "0 64 linear 7:0 0")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_, _ = d.WriteAt(context.Background(), filled(1, 512), int64(i)*512, false)
				}
			}
		})
	}
	for range 200 {
		mustFault(t, d, "write errno=EIO")
		_, err := d.WriteAt(limit(t), filled(1, 512), 8192, false)
		wantKind(t, "after set", err, blockdev.ErrIO)
		mustClear(t, d)
		_, err = d.WriteAt(limit(t), filled(1, 512), 8192, false)
		wantKind(t, "after clear", err, nil)
	}
	close(stop)
	wg.Wait()
}

// A request for nothing, as a device above may send, meets no rule.
func TestFaults_EmptyRequests(t *testing.T) {
	m, _ := newManager(t, nil)
	d := mustCreate(t, m, "d", "0 64 linear 7:0 0")
	for _, rule := range []string{"write tear=512", "write drop=until-flush", "read,write errno=EIO", "read,write corrupt"} {
		mustFault(t, d, rule)
		low := &mappedLower{dev: d, ctx: func() context.Context { return limit(t) }}
		if _, err := low.WriteAt(nil, 512); err != nil {
			t.Errorf("%s: write of nothing: %v", rule, err)
		}
		if _, err := low.ReadAt(nil, 512); err != nil {
			t.Errorf("%s: read of nothing: %v", rule, err)
		}
		if list := d.Faults(); list[0].Seen != 0 || list[0].Kept != 0 {
			t.Errorf("%+v", list)
		}
		mustClear(t, d)
	}
}

func TestFaults_Message(t *testing.T) {
	m, _ := newManager(t, nil)
	d := mustCreate(t, m, "d", "0 8 linear 7:0 0")
	say := func(words string) (string, error) { return d.Message(limit(t), 0, strings.Fields(words)) }
	for _, c := range []struct {
		words, answer string
		kind          error
	}{
		{"@fault set read errno=EIO", "1", nil},
		{"@fault set write hang; flush drop", "2 3", nil},
		{"@FAULT clear 2", "", nil},
		{"@fault list", "1 0 0 0 read errno=EIO\n3 0 0 0 flush drop", nil},
		{"@fault", "", blockdev.ErrInvalid},
		{"@fault set", "", blockdev.ErrInvalid},
		{"@fault set read", "", blockdev.ErrInvalid},
		{"@fault clear x", "", blockdev.ErrInvalid},
		{"@fault clear 2", "", blockdev.ErrInvalid},
		{"@fault list 1", "", blockdev.ErrInvalid},
		{"@fault stop", "", blockdev.ErrInvalid},
		{"@fault clear", "", nil},
		{"@fault list", "", nil},
	} {
		got, err := say(c.words)
		wantKind(t, c.words, err, c.kind)
		if got != c.answer {
			t.Errorf("%s: %q, want %q", c.words, got, c.answer)
		}
	}
}

// content is what a disk holds.
func (s *disks) content(name string) []byte {
	d := s.mem[name]
	p := make([]byte, d.Size())
	if _, err := d.ReadAt(p, 0); err != nil {
		panic(err)
	}
	return p
}
