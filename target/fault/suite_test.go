package fault

import (
	"context"
	"io"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
	"github.com/dmfuse/dmfuse/target/targettest"
	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func one(typ func() target.Type) func() []target.Type {
	return func() []target.Type { return []target.Type{typ()} }
}

func TestFlakey_Suite(t *testing.T) {
	for name, c := range map[string]targettest.Case{
		"always up":    {Args: []string{"a", "17", "1", "0"}, Table: "a 17 1 0 0 "},
		"long up":      {Args: []string{"a", "17", "4294967294", "1", "1", "drop_writes"}, Table: "a 17 4294967294 1 1 drop_writes "},
		"down, intact": {Args: []string{"a", "17", "0", "1", "2", "random_read_corrupt", "0", "error_reads"}, Table: "a 17 0 1 1 error_reads"},
	} {
		t.Run(name, func(t *testing.T) {
			c.Types, c.Start, c.Length, c.KeepsOnError = one(Flakey), 40, 200, true
			c.Disks = []targettest.Disk{{Name: "a", Sectors: 300, Seed: 7}}
			c.Content = func(s blockdev.Sector) []byte { return devtest.Pattern(7, s+17, 1) }
			if strings.HasPrefix(name, "down") {
				c.Args = []string{"a", "17", "0", "1", "5", "corrupt_bio_byte", "1000000000", "R", "1", "0"}
				c.Table = "a 17 0 1 5 corrupt_bio_byte 1000000000 r 1 0 "
			}
			for _, bad := range []string{
				"", "a", "a 0", "a 0 1", "a x 1 1", "a 0 x 1", "a 0 1 x", "a 0 -1 1", "a 0 0 0", "a 0 4294967295 1", "a 0 4294967296 0",
				"a 18014398509481983 1 1", "a 0 1 1 x", "a 0 1 1 12", "a 0 1 1 1", "a 0 1 1 1 nosuch", "a 0 1 1 2 drop_writes",
				"a 0 1 1 2 drop_writes error_writes", "a 0 1 1 2 drop_writes drop_writes", "a 0 1 1 2 error_reads error_reads",
				"a 0 1 1 1 corrupt_bio_byte", "a 0 1 1 4 corrupt_bio_byte 1 r 0", "a 0 1 1 4 corrupt_bio_byte 1 r 0 0",
				"a 0 1 1 5 corrupt_bio_byte 0 r 0 0", "a 0 1 1 5 corrupt_bio_byte 1 x 0 0", "a 0 1 1 5 corrupt_bio_byte 1 r 256 0",
				"a 0 1 1 5 corrupt_bio_byte 1 r 0 x", "a 0 1 1 6 drop_writes corrupt_bio_byte 1 w 0 0",
				"a 0 1 1 6 error_reads corrupt_bio_byte 1 r 0 0", "a 0 1 1 3 error_writes random_write_corrupt 1",
				"a 0 1 1 3 error_reads random_read_corrupt 1", "a 0 1 1 2 random_read_corrupt 1000000001", "a 0 1 1 1 random_read_corrupt",
			} {
				c.Bad = append(c.Bad, strings.Fields(bad))
			}
			targettest.Suite(t, c)
		})
	}
}

// lab makes targets over disks in memory.
type lab struct {
	t      *testing.T
	disks  map[string]*devtest.Fault
	events int
	env    target.Env
}

// disk is a lower device with a name.
type disk struct {
	*blockdev.Mem
	name  string
	id    uint64
	block int
}

func (d *disk) BlockSize() int  { return d.block }
func (d *disk) Name() string    { return d.name }
func (d *disk) ID() blockdev.ID { return blockdev.ID{Kind: blockdev.IDMemory, A: d.id} }

func newLab(t *testing.T, sectors blockdev.Sector, names ...string) *lab {
	l := &lab{t: t, disks: map[string]*devtest.Fault{}}
	for i, name := range names {
		l.disks[name] = devtest.NewFault(&disk{blockdev.NewMem(sectors.Bytes()), name, uint64(i + 1), 512})
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	l.env = target.Env{
		Length: sectors, Device: "test", Log: log, Event: func() { l.events++ },
		Open: func(name string, _ target.Mode) (target.Lower, error) {
			if d := l.disks[name]; d != nil {
				return d, nil
			}
			return nil, blockdev.ErrNoDevice
		},
	}
	return l
}

// make makes a target that works.
func (l *lab) make(typ target.Type, args string) target.Target {
	l.t.Helper()
	tgt, err := typ.New(&l.env, strings.Fields(args))
	if err != nil {
		l.t.Fatal(err)
	}
	if s, ok := tgt.(target.Suspender); ok {
		if err := s.Preresume(); err != nil {
			l.t.Fatal(err)
		}
		s.Resume()
	}
	return tgt
}

// on reads a range of a disk.
func (l *lab) on(name string, off int64, n int) []byte {
	l.t.Helper()
	p := make([]byte, n)
	if _, err := l.disks[name].ReadAt(p, off); err != nil {
		l.t.Fatal(err)
	}
	return p
}

func read(t *testing.T, tgt target.Target, off int64, n int) []byte {
	t.Helper()
	p := make([]byte, n)
	if err := tgt.Read(context.Background(), p, off); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestTypes_AreThoseOfTheKernel(t *testing.T) {
	want := map[string][3]uint32{"flakey": {1, 5, 0}, "delay": {1, 5, 0}, "dust": {1, 0, 0}, "log-writes": {1, 1, 0}}
	for _, typ := range Types() {
		if want[typ.Name] != typ.Version || typ.Singleton || typ.Immutable || typ.Wildcard {
			t.Errorf("%+v", typ)
		}
		delete(want, typ.Name)
	}
	if len(want) != 0 {
		t.Errorf("missing: %v", want)
	}
}
