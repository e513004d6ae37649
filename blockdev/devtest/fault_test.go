package devtest_test

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"golang.org/x/sys/unix"
)

func TestFaultRules(t *testing.T) {
	for _, c := range []struct {
		rules string
		want  string // of six writes to sector 5: . succeeds, x fails
	}{
		{"", "......"},
		{"write errno=EIO", "xxxxxx"},
		{"write after=2 count=1 errno=EIO", "..x..."},
		{"write every=2 errno=EIO", "x.x.x."},
		{"write after=1 every=3 errno=EIO", ".x..x."},
		{"write 5+1 count=2 errno=ENOSPC", "xx...."},
		{"write 0+5 errno=EIO", "......"},
		{"write 6+5 errno=EIO", "......"},
		{"read,flush errno=EIO", "......"},
		{"any errno=EIO", "xxxxxx"},
		{"fua errno=EIO; write after=5 errno=EIO # the last", ".....x"},
		{"write p=0.5 seed=3 errno=EIO", "..xx.."},
	} {
		f := devtest.NewFaultText(blockdev.NewMem(1<<20), c.rules)
		got := ""
		for range 6 {
			if _, err := f.WriteAt(make([]byte, sector), 5*sector); err != nil {
				got += "x"
			} else {
				got += "."
			}
		}
		if got != c.want {
			t.Errorf("%q: %s, expected %s", c.rules, got, c.want)
		}
	}
}

func TestFaultErrors(t *testing.T) {
	m := blockdev.NewMem(1 << 20)
	f := devtest.NewFaultText(m, "write errno=ENOSPC; flush errno=EIO; read short=100; fua torn=512 seed=1; zero,discard errno=EOPNOTSUPP")
	p := bytes.Repeat([]byte{'x'}, 16*sector)
	if n, err := f.WriteAt(p, 0); n != 0 || blockdev.Kind(err) != blockdev.ErrNoSpace || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("write: %d, %v", n, err)
	}
	if err := f.Flush(); blockdev.Kind(err) != blockdev.ErrIO {
		t.Errorf("flush: %v", err)
	}
	if n, err := f.ReadAt(p, 0); n != 100 || blockdev.Kind(err) != blockdev.ErrIO {
		t.Errorf("short read: %d, %v", n, err)
	}
	if err := f.Zero(0, 512, true); blockdev.Kind(err) != blockdev.ErrUnsupported {
		t.Errorf("zero: %v", err)
	}
	if err := f.Discard(0, 512); blockdev.Kind(err) != blockdev.ErrUnsupported {
		t.Errorf("discard: %v", err)
	}
	if n, err := f.WriteFUA(p[:16*sector], 0); n != 0 || blockdev.Kind(err) != blockdev.ErrIO {
		t.Errorf("torn write: %d, %v", n, err)
	}
	torn := letters(t, m, 16)
	if torn == "................" || torn == "xxxxxxxxxxxxxxxx" {
		t.Errorf("nothing torn: %s", torn)
	}
	if f.Hits(0) != 1 || f.Seen(3) != 1 || f.Hits(4) != 2 {
		t.Error("wrong counts")
	}
}

func TestFaultWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := devtest.NewFaultText(blockdev.NewMem(1<<20), "flush delay=1h; read count=2 hang")
		begin := time.Now()
		if err := f.Flush(); err != nil || time.Since(begin) != time.Hour {
			t.Errorf("flush after %v: %v", time.Since(begin), err)
		}
		done := make(chan error)
		for range 2 {
			go func() {
				_, err := f.ReadAt(make([]byte, 1), 0)
				done <- err
			}()
		}
		if err := f.AwaitHanging(t.Context(), 2); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := f.AwaitHanging(ctx, 3); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a third one hangs: %v", err)
		}
		f.Release()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
}

func TestRuleText(t *testing.T) {
	for _, text := range []string{
		"", "write", "nonsense errno=EIO", "write errno=ENOTHING", "write 1+0", "write 1", "write p=0", "write p=1.5", "write p=NaN",
		"write delay=-1s", "write after=-1", "write 18014398509481984+1", "write 1+18014398509481984", "write huh", "write,", ",",
	} {
		if r, err := devtest.ParseRule(text); err == nil && text != "write" {
			t.Errorf("%q is taken as %q", text, r)
		} else if err != nil && !errors.Is(err, blockdev.ErrInvalid) {
			t.Errorf("%q: %v is not of kind invalid", text, err)
		}
	}
}

func FuzzRule(f *testing.F) {
	for _, seed := range []string{
		"write 100+8 after=2 count=1 errno=EIO", "flush every=2 delay=5ms", "read p=0.1 seed=7 errno=EIO", "write torn=512", "any hang",
		"read,fua short=17 0+1",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := devtest.ParseRule(text)
		if err != nil {
			return
		}
		again, err := devtest.ParseRule(r.String())
		if err != nil || !reflect.DeepEqual(r, again) {
			t.Errorf("%q is %q, which is %+v, %v", text, r, again, err)
		}
	})
}
