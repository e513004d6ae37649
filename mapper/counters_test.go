package mapper

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// Each kind of request is counted when it has ended, with its bytes, its time and
// its errors, and is under way until then.
func TestIOCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _ := newManager(t, nil)
		ctx := context.Background()
		d := mustCreate(t, m, "d", "0 64 linear 7:0 0")
		mustFault(t, d, "read delay=2s; write nth=2 errno=EIO")
		read := later(func() error { _, err := d.ReadAt(ctx, make([]byte, 1024), 0); return err })
		synctest.Wait()
		if c := d.IOCount(); c.InFlight != 1 || c.Read != (OpCount{}) {
			t.Errorf("while it reads: %+v", c)
		}
		if err := <-read; err != nil {
			t.Fatal(err)
		}
		mustWrite(t, d, 1, 0, 512)
		if _, err := d.WriteAt(ctx, make([]byte, 512), 0, false); err == nil {
			t.Error("the second write is to fail")
		}
		for _, err := range []error{d.Zero(ctx, 0, 4096, false), d.Flush(ctx)} {
			if err != nil {
				t.Error(err)
			}
		}
		if err := d.Discard(ctx, 0, 8192); err == nil {
			t.Error("the disk takes no discards")
		}
		want := IOCount{
			Read: OpCount{1, 1024, 0, 2 * time.Second}, Write: OpCount{3, 512 + 4096, 1, 0},
			Flush: OpCount{1, 0, 0, 0}, Discard: OpCount{1, 0, 1, 0},
		}
		if c := d.IOCount(); c != want {
			t.Errorf("%+v, want %+v", c, want)
		}
	})
}
