package mirror

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
)

// The table "Errors" of docs/targets/mirror.md, for a mirror of three legs and a
// log on a device. A cell is what becomes of it: the answer; whether the region
// is "in" sync afterwards or "out"; the letter of what failed in the status; the
// number of events.
//
// What fails is each leg in turn where the row says leg. A leg that is dropped has
// an event for its error and one for the drop; a mirror that comes in sync has
// one, and with a leg record another for the legs that are in now.
var matrix = []matrixRow{
	//                                                no features          handle_errors        .. keep_log          leg_record
	{"leg: write", matrixWrite, [4]string{"success out D 0", "held out D 1", "success out D 1", "success in D 2"}},
	{"leg: durable write", matrixFUA, [4]string{"success out D 0", "held out D 1", "success out D 1", "success in D 2"}},
	{"leg: zero", matrixZero, [4]string{"success out D 0", "held out D 1", "success out D 1", "success in D 2"}},
	{"leg: flush", matrixFlush, [4]string{"success in D 0", "held in D 1", "success in D 1", "success in D 2"}},
	{"leg: flush after a write", matrixWriteFlush, [4]string{"success out D 0", "held out D 1", "success out D 1", "success in D 2"}},
	{"leg: flush before bits are cleared", matrixClear, [4]string{"success out F 0", "success out F 1", "success out F 1", "success in F 2"}},
	{"leg: discard", matrixDiscard, [4]string{"EOPNOTSUPP in A 0", "EOPNOTSUPP in A 0", "EOPNOTSUPP in A 0", "EOPNOTSUPP in A 0"}},
	{"leg: read", matrixRead, [4]string{"success in R 0", "success in R 1", "success in R 1", "success in R 1"}},
	{"leg: write to a region out of sync after it", matrixSecond, [4]string{"success out D 0", "held out D 1", "success out D 1", "success in D 2"}},
	{"first leg: recovery at the resume", matrixRecovery, [4]string{"success in A 1", "success out S 1", "success out S 1", "success out R 1"}},
	{"other leg: recovery at the resume", matrixRecovery, [4]string{"success in A 1", "success out S 1", "success out S 1", "success in D 4"}},
	{"first leg: recovery later", matrixLater, [4]string{"success out S 0", "success out S 1", "success out S 1", "success in A 2"}},
	{"other leg: recovery later", matrixLater, [4]string{"success out S 0", "success out S 1", "success out S 1", "success in D 3"}},
	{"all legs: write", matrixWrite, [4]string{"EIO out D 0", "EIO out D 3", "EIO out D 3", "EIO out D 3"}},
	{"all legs: zero", matrixZero, [4]string{"EIO out D 0", "EIO out D 3", "EIO out D 3", "EIO out D 3"}},
	{"all legs: flush", matrixFlush, [4]string{"EIO in D 0", "EIO in D 3", "EIO in D 3", "EIO in D 3"}},
	{"all legs: discard", matrixDiscard, [4]string{"EOPNOTSUPP in A 0", "EOPNOTSUPP in A 0", "EOPNOTSUPP in A 0", "EOPNOTSUPP in A 0"}},
	{"all legs: read", matrixRead, [4]string{"EIO in R 0", "EIO in R 3", "EIO in R 3", "EIO in R 3"}},
	{"log: write", matrixWrite, [4]string{"success in D 1", "held in D 1", "EIO in D 1", "EIO in D 1"}},
	{"log: zero", matrixZero, [4]string{"success in D 1", "held in D 1", "EIO in D 1", "EIO in D 1"}},
	{"log: flush", matrixWrite, [4]string{"success in F 1", "held in F 1", "EIO in F 1", "EIO in F 1"}},
	{"log: read", matrixResume, [4]string{"success in D 2", "success in D 2", "success in D 2", "EIO in D 2"}},
	{"log: discard", matrixDiscard, [4]string{"success in A 0", "success in A 0", "success in A 0", "success in A 0"}},
}

// matrixFeatures are the columns.
var matrixFeatures = append(features, " 1 leg_record")

// A held request ends with a suspend: given back, or EIO.
type matrixRow struct {
	name string // what fails, and at what
	do   matrixDo
	want [4]string
}

// matrixDo has the failure set and does the request. Rules are put on the
// devices with fail and taken away with mend.
type matrixDo func(x *matrixRun) error

// matrixRun is one cell at one region.
type matrixRun struct {
	*table
	t      *testing.T
	faults map[string]*devtest.Fault
	bad    []string // the devices that fail
	region blockdev.Sector
	feats  string
}

const (
	matrixSectors = 126 // 16 regions of 8, the last one short
	matrixLast    = 15
)

var matrixLegs = []string{"a", "b", "c"}

// at is the first sector and the number of sectors of what is written.
func (x *matrixRun) at() (blockdev.Sector, blockdev.Sector) { return x.region*8 + 1, 3 }

// fail lets requests of some kinds fail, in the region if they are of data.
func (x *matrixRun) fail(ops string) {
	for _, d := range x.bad {
		rule := ops + " errno=EIO"
		if d != "log" && ops != "flush" {
			rule = fmt.Sprintf("%s %d+6 errno=EIO", ops, x.region*8)
		}
		x.faults[d].SetText(rule)
	}
}

// mend lets all be well again, at once for the legs, never for the log.
func (x *matrixRun) mend() {
	for _, d := range x.bad {
		x.faults[d].Set()
	}
}

func (x *matrixRun) put(seed uint64) error {
	s, n := x.at()
	return x.write(seed, s, n)
}

func matrixWrite(x *matrixRun) error {
	x.fail(map[bool]string{true: "flush,fua", false: "write,fua"}[strings.HasSuffix(x.t.Name(), "log:_flush")])
	return x.put(50)
}

func matrixFUA(x *matrixRun) error {
	x.fail("fua")
	s, n := x.at()
	return x.Write(context.Background(), devtest.Pattern(50, s, n), s.Bytes(), true)
}

func matrixZero(x *matrixRun) error {
	x.fail("zero,write,fua")
	s, n := x.at()
	return x.Zero(context.Background(), s.Bytes(), n.Bytes(), true)
}

func matrixFlush(x *matrixRun) error {
	x.fail("flush")
	return x.Flush(context.Background())
}

func matrixWriteFlush(x *matrixRun) error {
	if err := x.put(50); err != nil {
		return err
	}
	return matrixFlush(x)
}

func matrixClear(x *matrixRun) error {
	err := x.put(50)
	x.fail("flush")
	x.clearStep(time.Now(), true)
	return err
}

func matrixDiscard(x *matrixRun) error {
	x.fail("discard")
	s, n := x.at()
	return x.Discard(context.Background(), s.Bytes(), n.Bytes())
}

// matrixRead reads until each leg had its turn.
func matrixRead(x *matrixRun) (err error) {
	x.fail("read")
	for range 2 * len(matrixLegs) {
		if e := x.check(1, x.region*8, 6); e != nil {
			err = e
		}
	}
	return err
}

// matrixRecovery is the first resume, with everything out of sync: the default leg cannot be
// read, the others cannot be written.
func matrixRecovery(x *matrixRun) error {
	x.fail(x.copyOp())
	x.resume()
	x.settledOnce()
	return nil
}

// copyOp is what a copy does with the leg that fails.
func (x *matrixRun) copyOp() string {
	if x.bad[0] == "a" {
		return "read"
	}
	return "write,zero"
}

// matrixLater has everything copied again.
func matrixLater(x *matrixRun) error {
	x.fail(x.copyOp())
	x.message("resync")
	x.settledOnce()
	return nil
}

// settledOnce waits until the pass is over.
func (x *matrixRun) settledOnce() {
	until(x.t, "the pass ends", func() bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		return x.rec.active == 0 && len(x.rec.solo) == 0 && x.rec.pos >= x.dirty.n && (x.inSync || !x.dirty.complete()) && x.loops.idle(loopRecover)
	})
	x.recordNow() // after a change of it, and its event
}

// matrixSecond loses the region by one write and does another one.
func matrixSecond(x *matrixRun) error {
	x.fail("write count=1")
	x.failsFirst(func() error { return x.put(49) })
	x.mend()
	return x.put(50)
}

// matrixResume reads the log again.
func matrixResume(x *matrixRun) error {
	x.suspend(false)
	x.fail("read")
	x.resume()
	x.mend()
	x.settledOnce()
	return x.put(50)
}

func (x *matrixRun) tableLine(log string) string {
	return fmt.Sprintf("0 %d mirror disk %s 3 a 0 b 0 c 0%s", matrixSectors, log, x.feats)
}

// newMatrixRun is a mirror in sync, or one that was never resumed.
func newMatrixRun(t *testing.T, feats string, region blockdev.Sector, bad []string, live bool) *matrixRun {
	l := newLab(t, Options{Policies: Policies{Retry: -1, ReadBalance: ReadLoad}, ClearDelay: time.Hour})
	x := &matrixRun{t: t, faults: map[string]*devtest.Fault{}, bad: bad, region: region, feats: feats}
	for _, d := range append([]string{"log"}, matrixLegs...) {
		fill(t, l.mem(d, matrixSectors+2), 1)
		x.faults[d] = l.fault(d)
	}
	put(t, l.devs["log"], make([]byte, 4096), 0)
	var err error
	if x.table, err = l.load(x.tableLine("2 log 8")); err != nil {
		t.Fatal(err)
	}
	if !live {
		return x
	}
	x.resume()
	x.settledOnce()
	for x.clearStep(time.Now(), true) >= 0 {
	}
	x.events.Store(0)
	return x
}

// cell is what has become of it, as in the table.
func (x *matrixRun) cell(a answer) string {
	in := "out"
	if x.dirty.inSync(Region(x.region)) {
		in = "in"
	}
	w := strings.Fields(x.Status(target.StatusInfo))
	letters, log := w[6], w[len(w)-1]
	letter := log
	if x.bad[0] != "log" {
		letter = ""
		for i, d := range matrixLegs {
			failed := strings.Contains(strings.Join(x.bad, " "), d)
			switch c := letters[i : i+1]; {
			case failed && (letter == "" || letter == c):
				letter = c
			case failed || c != "A":
				letter = letters // neither all the same, nor only those that failed
			}
		}
		if log != "A" {
			letter += "/" + log
		}
	} else if letters != "AAA" {
		letter += "/" + letters
	}
	return fmt.Sprintf("%s %s %s %d", a, in, letter, x.events.Load())
}

// TestMatrix is the table of errors: each row, with each leg, each set of
// features, at the first, a middle and the last region.
func TestMatrix(t *testing.T) {
	for _, row := range matrix {
		who, _, _ := strings.Cut(row.name, ":")
		bads := map[string][][]string{"leg": {{"a"}, {"b"}, {"c"}}, "first leg": {{"a"}}, "other leg": {{"b"}, {"c"}}, "all legs": {matrixLegs}, "log": {{"log"}}}[who]
		for _, bad := range bads {
			for i, feats := range matrixFeatures {
				for _, region := range []blockdev.Sector{0, 7, matrixLast} {
					t.Run(fmt.Sprintf("%s/%s/features%s/region %d/%s", who, bad, feats, region, row.name), func(t *testing.T) {
						testCell(t, row, i, region, bad)
					})
				}
			}
		}
	}
}

func testCell(t *testing.T, row matrixRow, i int, region blockdev.Sector, bad []string) {
	x := newMatrixRun(t, matrixFeatures[i], region, bad, !strings.Contains(row.name, "at the resume"))
	already := 0
	if strings.HasPrefix(row.want[i], "held") && strings.Contains(row.name, "after it") {
		already = 1 // the write before it
	}
	done := start(func() error { return row.do(x) })
	a, err := x.outcome(done, already)
	if got := x.cell(a); got != row.want[i] {
		t.Errorf("%q, want %q (error %v)", got, row.want[i], err)
	}
	if strings.HasSuffix(strings.Split(row.want[i], " ")[1], "out") {
		bits := make([]byte, 2)
		if _, err := x.l.devs["log"].ReadAt(bits, offBits); err != nil || bits[region/8]>>(region%8)&1 == 1 {
			t.Errorf("the bits on the disk are %x (%v), and the region is out of sync", bits, err)
		}
	}
	if a != held {
		x.finish()
		return
	}
	if r := x.Report(); r.Held != already+1 || r.HeldSince.IsZero() {
		t.Errorf("%d writes are held, since %v", r.Held, r.HeldSince)
	}
	noflush := region != 7
	x.Presuspend(noflush)
	err = result(t, done)
	if errors.Is(err, target.ErrRequeue) != noflush || kindOf(err) != ioError {
		t.Errorf("after a suspend, without flush %v: %v", noflush, err)
	}
	x.Postsuspend()
	x.live.Store(false)
	x.finish()
}

// finish ends the device; whatever fails, it does not take for ever.
func (x *matrixRun) finish() {
	closed := start(func() error { x.table.close(); return nil })
	if err := result(x.t, closed); err != nil {
		x.t.Error(err)
	}
}
