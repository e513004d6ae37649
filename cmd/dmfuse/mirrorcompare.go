package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A leg that becomes a copy of another loses what it holds. Here is found out
// whether that is something else than what it will hold.

// compareStep is how much is read and compared at a time.
const compareStep = 1 << 20

// checkOverwrite refuses to copy source over leg when leg holds data other than
// the source's within the first size bytes. Zeros and holes are no data.
func (a *app) checkOverwrite(ctx context.Context, source, leg place, size int64) error {
	for _, p := range []place{source, leg} {
		if p.device != nil && p.device.Suspended {
			return fail(exitBusy, fmt.Errorf("%s is suspended, so what it holds cannot be looked at", p.what()), "resume it first: dmfuse resume "+shellQuote(p.device.Name))
		}
	}
	said := time.AfterFunc(2*time.Second, func() {
		a.note("%s holds data; it is compared with %s, which may take a while (--force does without)", leg.what(), source.what())
	})
	defer said.Stop()
	at, differ, err := firstDifference(ctx, source.path, leg.path, size)
	if err != nil || !differ {
		return err
	}
	return fail(exitBusy, fmt.Errorf("%s holds %s, which differs from %s at byte %d: it would be overwritten", leg.what(), leg.holds(), source.what(), at), "")
}

// holds says in words what a place has in it, as far as one can tell.
func (p place) holds() string {
	c, err := p.probe()
	if err != nil {
		return "data"
	}
	return c.describe()
}

// firstDifference is the first byte of leg, within size, that is neither zero
// nor equal to that of source.
func firstDifference(ctx context.Context, source, leg string, size int64) (at int64, differ bool, err error) {
	s, err := os.Open(source)
	if err != nil {
		return 0, false, err
	}
	defer s.Close()
	l, err := os.Open(leg)
	if err != nil {
		return 0, false, err
	}
	defer l.Close()
	have, want := make([]byte, compareStep), make([]byte, compareStep)
	for off := int64(0); off < size; {
		from, to, err := nextData(l, off, size)
		if err != nil || from >= size {
			return 0, false, err
		}
		for off = from; off < to; off += compareStep {
			if err := context.Cause(ctx); err != nil {
				return 0, false, err
			}
			n := min(compareStep, to-off)
			if at, err := compareAt(s, l, off, have[:n], want[:n]); err != nil || at >= 0 {
				return off + max(at, 0), err == nil, err
			}
		}
		off = to
	}
	return 0, false, nil
}

// compareAt compares one piece; -1: nothing would be lost.
func compareAt(source, leg io.ReaderAt, off int64, have, want []byte) (int64, error) {
	if err := readFull(leg, have, off); err != nil {
		return -1, err
	}
	if isZero(have) {
		return -1, nil
	}
	if err := readFull(source, want, off); err != nil {
		return -1, err
	}
	for i, b := range have {
		if b != 0 && b != want[i] {
			return int64(i), nil
		}
	}
	return -1, nil
}

// readFull reads all of p. What is behind the end of a file reads as zeros.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if err == nil || errors.Is(err, io.EOF) {
		clear(p[n:])
		return nil
	}
	return err
}

// nextData is the next run of a file that is no hole; from is size when there
// is none. Of what knows no holes everything is data.
func nextData(f *os.File, off, size int64) (from, to int64, err error) {
	from, err = unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, size, nil
	case err != nil:
		return off, size, nil // no holes are known here
	}
	to, err = unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE)
	if err != nil {
		return from, size, nil // likewise
	}
	return min(from, size), min(to, size), nil
}
