package devtest_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
)

func TestPattern(t *testing.T) {
	m := blockdev.NewMem(1 << 20)
	if err := devtest.Fill(m, 3, 100, 300); err != nil {
		t.Fatal(err)
	}
	if err := devtest.Check(m, 3, 100, 300); err != nil {
		t.Error(err)
	}
	if err := devtest.CheckZero(m, 0, 100); err != nil {
		t.Error(err)
	}
	p := make([]byte, 8)
	if _, err := m.ReadAt(p, 300*sector+8); err != nil || string(p) != "\x2c\x01\x00\x00\x00\x03\x00\x00" {
		t.Errorf("sector 300 of pattern 3 is % x", p)
	}
}

func TestPatternMismatch(t *testing.T) {
	m := blockdev.NewMem(1 << 20)
	if err := errors.Join(devtest.Fill(m, 3, 0, 10), devtest.Fill(m, 4, 5, 2)); err != nil {
		t.Fatal(err)
	}
	var bad *devtest.Mismatch
	err := devtest.Check(m, 3, 0, 11)
	if !errors.As(err, &bad) || bad.Sector != 5 || bad.Byte != 5 || bad.Bad != 3 || bad.Checked != 11 {
		t.Errorf("%+v", bad)
	}
	want := "sector 5 differs from byte 5 on: expected sector 5 of pattern 3, found sector 5 of pattern 4 (3 of 11 sectors differ)"
	if err.Error() != want {
		t.Errorf("%q, expected %q", err, want)
	}
	if err := devtest.Check(m, 3, 10, 1); !strings.Contains(err.Error(), "found zeros") {
		t.Error(err)
	}
	if _, err := m.WriteAt([]byte("abc"), 3*sector); err != nil {
		t.Fatal(err)
	}
	if err := devtest.Check(m, 3, 3, 1); !strings.Contains(err.Error(), "found 616263000003") {
		t.Error(err)
	}
	if err := devtest.Check(m, 3, 2047, 2); err == nil || errors.As(err, &bad) && bad.Sector == 2047 {
		t.Errorf("check over the end: %v", err)
	}
}

func TestLogLines(t *testing.T) {
	log := devtest.NewLog()
	a, b := log.Wrap("a", blockdev.NewMem(1<<20)), log.Wrap("b", devtest.NewFaultText(blockdev.NewMem(1<<20), "flush errno=EIO"))
	put(t, a, 1, 3, 4)
	if _, err := b.WriteFUA([]byte{1, 2}, 7); err != nil {
		t.Fatal(err)
	}
	log.Mark("half")
	if err := b.Flush(); err == nil {
		t.Fatal("flush succeeds")
	}
	_ = letters(t, a, 1)
	want := "a write 3+4\nb fua bytes 7+2\n# half\nb flush\n"
	if got := log.Lines(devtest.OpAll &^ devtest.OpRead); got != want {
		t.Errorf("%q, expected %q", got, want)
	}
	if e := log.Events()[6]; e.Err == nil || !strings.HasPrefix(e.String(), "b flush: ") {
		t.Errorf("the end of the flush is %v", e)
	}
	if log.Len() != 9 {
		t.Errorf("%d events", log.Len())
	}
}
