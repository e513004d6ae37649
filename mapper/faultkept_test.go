package mapper

import (
	"bytes"
	"context"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev/faultrule"
	"github.com/dmfuse/dmfuse/target"
	"github.com/dmfuse/dmfuse/target/basic"
	"pgregory.net/rapid"
)

// A device with a rule of drop=until-flush against two arrays: what reads see,
// and what a power cut leaves. Writes outside of the place of the rule are done
// at once.
func TestFaults_UntilFlushModel(t *testing.T) {
	const size, place = 32 * 512, 20 * 512
	rapid.Check(t, func(rt *rapid.T) {
		m, err := New(oneDisk(t))
		if err != nil {
			rt.Fatal(err)
		}
		defer m.Close(context.Background())
		d := mustCreate(t, m, "d", "0 32 linear 7:0 0")
		arm := func() { mustFault(t, d, "write bytes=0+10240 drop=until-flush") }
		arm()
		ctx := context.Background()
		seen, durable := make([]byte, size), make([]byte, size)
		span := func() (off, n int) {
			off = rapid.IntRange(0, size-1).Draw(rt, "off")
			return off, rapid.IntRange(1, min(size-off, 3000)).Draw(rt, "n")
		}
		check := func(err error) {
			if err != nil {
				rt.Fatal(err)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"write": func(rt *rapid.T) {
				off, n := span()
				c := rapid.Byte().Draw(rt, "value")
				fua := rapid.Bool().Draw(rt, "durable")
				_, err := d.WriteAt(ctx, filled(c, n), int64(off), fua)
				check(err)
				copy(seen[off:], filled(c, n))
				if fua || off >= place {
					copy(durable[off:], filled(c, n))
				}
			},
			"zero": func(rt *rapid.T) {
				off, n := span()
				check(d.Zero(ctx, int64(off), int64(n), false))
				copy(seen[off:], make([]byte, n))
				if off >= place {
					copy(durable[off:], make([]byte, n))
				}
			},
			"flush": func(*rapid.T) {
				check(d.Flush(ctx))
				copy(durable, seen)
			},
			"suspend": func(*rapid.T) {
				check(d.Suspend(ctx, SuspendOptions{}))
				check(d.Resume(ctx, SuspendOptions{}))
				copy(durable, seen)
			},
			"power cut": func(*rapid.T) {
				mustClear(t, d)
				copy(seen, durable)
				arm()
			},
			"": func(rt *rapid.T) {
				p := make([]byte, size)
				_, err := d.ReadAt(ctx, p, 0)
				check(err)
				if !bytes.Equal(p, seen) {
					rt.Fatal("a read does not see what was written")
				}
				_, err = d.live.Load().lowers[0].ReadAt(p, 0)
				check(err)
				if !bytes.Equal(p, durable) {
					rt.Fatal("the disk holds something else than what is durable")
				}
				checkKept(rt, d.faults.Load())
			},
		})
	})
}

// checkKept looks at the order and the count of the pieces.
func checkKept(rt *rapid.T, f *faults) {
	end, total := int64(0), int64(0)
	for _, p := range f.kept.pieces {
		if p.off < end || len(p.data) == 0 {
			rt.Fatalf("a piece at %d with %d bytes after one that ends at %d", p.off, len(p.data), end)
		}
		end = p.end()
		total += int64(len(p.data))
	}
	if total != f.kept.bytes || f.kept.bytesOf(f.rules[0]) != total {
		rt.Fatalf("%d bytes are kept, %d are counted", total, f.kept.bytes)
	}
}

// What is kept for a rule that is being cleared is lost, not left behind.
func TestKept_PutAfterRelease(t *testing.T) {
	k := newKept()
	a := faultrule.Arm(1, faultrule.Rule{Ops: faultrule.Write, Keep: true})
	if !k.put(a, filled(1, 512), 0) || k.bytesOf(a) != 512 {
		t.Fatal("not kept")
	}
	a.Release()
	k.lose(a)
	if k.put(a, filled(1, 512), 0) || !k.empty() || k.bytes != 0 {
		t.Error("kept for a rule that was cleared")
	}
}

func oneDisk(t *testing.T) Options {
	s := newDisks()
	s.add("7:0", 64)
	return Options{
		Types: target.NewSet(basic.Types()...), Major: 253, ReleaseWait: -1,
		OpenLower: s.openPath, OpenNumber: s.openNumber, Host: Host{Proc: t.TempDir(), Sys: t.TempDir()},
	}
}
