package fault

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// The intervals count from the load, in whole seconds.
func TestFlakey_IsUpAndDownByTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 64, "a")
		f := l.make(Flakey(), "a 0 3 2")
		for step := range 40 {
			down := step/4%5 >= 3 // quarters of a second, from the load
			err := f.Read(context.Background(), make([]byte, 512), 0)
			if (err != nil) != down || err != nil && blockdev.Kind(err) != blockdev.ErrIO {
				t.Errorf("after %v: %v", time.Duration(step)*250*time.Millisecond, err)
			}
			time.Sleep(250 * time.Millisecond)
		}
	})
}

func TestFlakey_NoUpIsAlwaysDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newLab(t, 64, "a").make(Flakey(), "a 0 0 1")
		for range 5 {
			if err := f.Write(context.Background(), make([]byte, 512), 0, false); blockdev.Kind(err) != blockdev.ErrIO {
				t.Errorf("a write: %v", err)
			}
			time.Sleep(700 * time.Millisecond)
		}
	})
}

// What each feature does to each kind of request while the device is down:
// "e" it fails, "d" it succeeds and is dropped, "p" it passes.
func TestFlakey_WhatFailsWhileDown(t *testing.T) {
	for features, want := range map[string]string{
		"":                                 "eeeee",
		"0":                                "eeeee",
		"1 error_reads":                    "epppp",
		"1 drop_writes":                    "pdddd",
		"1 error_writes":                   "peeee",
		"2 error_reads error_writes":       "eeeee",
		"2 DROP_WRITES Error_Reads":        "edddd",
		"5 corrupt_bio_byte 9000 r 1 0":    "ppppp",
		"2 random_read_corrupt 0":          "eeeee",
		"2 random_write_corrupt 0 ignored": "eeeee",
	} {
		t.Run(features, func(t *testing.T) {
			l := newLab(t, 64, "a")
			f := l.make(Flakey(), "a 8 0 1 "+features)
			l.disks["a"].SetText("flush delay=1ns; discard delay=1ns") // count
			if _, err := l.disks["a"].WriteAt(bytes.Repeat([]byte{7}, 64*512), 0); err != nil {
				t.Fatal(err)
			}
			ctx := context.Background()
			got := ""
			note := func(err error, arrived func() bool) {
				switch {
				case err != nil && blockdev.Kind(err) == blockdev.ErrIO:
					got += "e"
				case err != nil:
					t.Error(err)
				case arrived():
					got += "p"
				default:
					got += "d"
				}
			}
			p := make([]byte, 512)
			note(f.Read(ctx, p, 0), func() bool { return p[0] == 7 })
			note(f.Write(ctx, bytes.Repeat([]byte{8}, 512), 512, true), func() bool { return l.on("a", 9*512, 1)[0] == 8 })
			note(f.Flush(ctx), func() bool { return l.disks["a"].Hits(0) > 0 })
			note(f.(target.Zeroer).Zero(ctx, 1024, 512, false), func() bool { return l.on("a", 10*512, 1)[0] == 0 })
			note(f.(target.Discarder).Discard(ctx, 2048, 512), func() bool { return l.disks["a"].Hits(1) > 0 })
			if got != want {
				t.Errorf("read, write, flush, zero, discard: %s, want %s", got, want)
			}
		})
	}
}

func TestFlakey_TableText(t *testing.T) {
	for args, want := range map[string]string{
		"a 0 1 1":                       "a 0 1 1 0 ",
		"a 007 01 1 0":                  "a 7 1 1 0 ",
		"a 0 1 1 0 words of no meaning": "a 0 1 1 0 ",
		"a 0 1 1 1 drop_writes":         "a 0 1 1 1 drop_writes ",
		"a 0 1 1 1 ERROR_writes":        "a 0 1 1 1 error_writes ",
		"a 0 1 1 6 corrupt_bio_byte 032 R 1 0 drop_writes":                       "a 0 1 1 6 drop_writes corrupt_bio_byte 32 r 1 0 ",
		"a 0 1 1 1 error_reads":                                                  "a 0 1 1 1 error_reads",
		"a 0 1 1 2 error_writes error_reads":                                     "a 0 1 1 2 error_reads error_writes",
		"a 0 1 1 2 random_read_corrupt 0":                                        "a 0 1 1 2 error_reads error_writes",
		"a 0 1 1 4 random_write_corrupt 5 random_read_corrupt 4":                 "a 0 1 1 4 random_read_corrupt 4 random_write_corrupt 5",
		"a 0 1 1 7 random_write_corrupt 5 corrupt_bio_byte 1 w 255 131072":       "a 0 1 1 7 corrupt_bio_byte 1 w 255 131072 random_write_corrupt 5",
		"a 0 1 1 8 drop_writes corrupt_bio_byte 1 r 255 0 random_read_corrupt 1": "a 0 1 1 8 drop_writes corrupt_bio_byte 1 r 255 0 random_read_corrupt 1",
	} {
		f := newLab(t, 64, "a").make(Flakey(), args)
		if got := f.Status(target.StatusTable); got != want {
			t.Errorf("%s: %q, want %q", args, got, want)
		}
		if got := f.Status(target.StatusInfo); got != "" {
			t.Errorf("%s: status %q", args, got)
		}
	}
}

// Byte n counts from 1 in each request; what is shorter is left alone.
func TestFlakey_CorruptsOneByteOfReads(t *testing.T) {
	l := newLab(t, 64, "a")
	f := l.make(Flakey(), "a 0 0 1 5 corrupt_bio_byte 600 r 85 0")
	for n, at := range map[int]int{512: -1, 599: -1, 600: 599, 4096: 599} {
		want := make([]byte, n)
		if at >= 0 {
			want[at] = 85
		}
		if got := read(t, f, 1024, n); !bytes.Equal(got, want) {
			t.Errorf("read of %d bytes: not what was to be", n)
		}
	}
	if got := l.on("a", 0, 64*512); !bytes.Equal(got, make([]byte, 64*512)) {
		t.Error("the disk has changed")
	}
	l.disks["a"].SetText("read errno=EIO")
	if err := f.Read(context.Background(), make([]byte, 4096), 0); blockdev.Kind(err) != blockdev.ErrIO {
		t.Errorf("a read that fails below: %v", err)
	}
}

func TestFlakey_CorruptsOneByteOfWritesInACopy(t *testing.T) {
	l := newLab(t, 64, "a")
	f := l.make(Flakey(), "a 0 0 1 5 corrupt_bio_byte 3 w 85 0")
	ctx := context.Background()
	p := bytes.Repeat([]byte{1}, 1024)
	if err := f.Write(ctx, p, 512, false); err != nil || !bytes.Equal(p, bytes.Repeat([]byte{1}, 1024)) {
		t.Errorf("%v, or the caller's buffer has changed", err)
	}
	want := bytes.Clone(p)
	want[2] = 85
	if !bytes.Equal(l.on("a", 512, 1024), want) {
		t.Error("the disk holds something else")
	}
	if err := f.(target.Zeroer).Zero(ctx, 0, 512, true); !errors.Is(err, blockdev.ErrUnsupported) {
		t.Errorf("zeros must be written to be corrupted: %v", err)
	}
}

func TestFlakey_CorruptsOnlyRequestsWithAllFlags(t *testing.T) {
	for flags, want := range map[string]string{"0": "11", "1": "11", "131072": "01", "131073": "01", "32": "00", "4096": "00"} {
		l := newLab(t, 64, "a")
		f := l.make(Flakey(), "a 0 0 1 5 corrupt_bio_byte 1 w 85 "+flags)
		got := ""
		for i, fua := range []bool{false, true} {
			if err := f.Write(context.Background(), make([]byte, 512), int64(i)*512, fua); err != nil {
				t.Fatal(err)
			}
			if l.on("a", int64(i)*512, 1)[0] == 85 {
				got += "1"
			} else {
				got += "0"
			}
		}
		if got != want {
			t.Errorf("flags %s: plain and FUA write corrupted: %s, want %s", flags, got, want)
		}
	}
}

func TestFlakey_CorruptsRandomBytes(t *testing.T) {
	const tries = 400
	count := func(args string, change func(l *lab, f target.Target) []byte) (hits int) {
		l := newLab(t, 64, "a")
		f := l.make(Flakey(), "a 0 0 1 "+args)
		for range tries {
			p := change(l, f)
			if n := len(p) - bytes.Count(p, []byte{0}); n > 1 {
				t.Fatalf("%d bytes are not as they were", n)
			} else {
				hits += n
			}
		}
		return hits
	}
	reads := func(_ *lab, f target.Target) []byte { return read(t, f, 0, 4096) }
	writes := func(l *lab, f target.Target) []byte {
		if err := f.Write(context.Background(), make([]byte, 4096), 0, false); err != nil {
			t.Fatal(err)
		}
		return l.on("a", 0, 4096)
	}
	// One of 256 random values is no change.
	if n := count("2 random_read_corrupt 1000000000", reads); n < tries*9/10 || n == 0 {
		t.Errorf("always: %d of %d reads", n, tries)
	}
	if n := count("2 random_write_corrupt 1000000000", writes); n < tries*9/10 {
		t.Errorf("always: %d of %d writes", n, tries)
	}
	if n := count("2 random_read_corrupt 500000000", reads); n < tries/4 || n > tries*3/4 {
		t.Errorf("half: %d of %d reads", n, tries)
	}
	if n := count("3 error_reads random_write_corrupt 500000000", writes); n < tries/4 || n > tries*3/4 {
		t.Errorf("half: %d of %d writes", n, tries)
	}
	if n := count("3 drop_writes random_read_corrupt 1", writes); n != 0 {
		t.Errorf("a dropped write arrives %d times", n)
	}
}

// Who looks for holes must not pass over what a read would have corrupted.
func TestFlakey_ExtentsHideNoFault(t *testing.T) {
	for args, hole := range map[string]bool{
		"1 0": true, "0 1 1 drop_writes": true, "1 1": false, "1 1 1 error_reads": false, "0 1 5 corrupt_bio_byte 1 r 1 0": false, "1 1 2 random_read_corrupt 1": false,
	} {
		f := newLab(t, 64, "a").make(Flakey(), "a 0 "+args).(target.Extenter)
		n, got, err := f.Extent(context.Background(), 512)
		if err != nil || got != hole || n != 63*512 {
			t.Errorf("%s: %d %v %v", args, n, got, err)
		}
	}
	f := newLab(t, 64, "a").make(Flakey(), "a 0 0 1").(target.Extenter)
	if _, _, err := f.Extent(context.Background(), 0); blockdev.Kind(err) != blockdev.ErrIO {
		t.Errorf("extent of a device that fails reads: %v", err)
	}
}

// The flush of a suspend makes durable what was written while the device was
// up, and is no error that the next table would have to tell.
func TestFlakey_TheFlushOfASuspendPasses(t *testing.T) {
	for _, features := range []string{"", "1 drop_writes"} {
		l := newLab(t, 64, "a")
		f := l.make(Flakey(), "a 0 0 1 "+features)
		l.disks["a"].SetText("flush delay=1ns")
		s := f.(target.Suspender)
		s.Presuspend(false)
		if err := f.Flush(context.Background()); err != nil || l.disks["a"].Hits(0) != 1 {
			t.Errorf("%q: %v, the disk was flushed %d times", features, err, l.disks["a"].Hits(0))
		}
		s.Postsuspend()
		s.Resume()
		if err := f.Flush(context.Background()); (err == nil) != (features != "") || l.disks["a"].Hits(0) != 1 {
			t.Errorf("%q: after the resume: %v, the disk was flushed %d times", features, err, l.disks["a"].Hits(0))
		}
	}
}
