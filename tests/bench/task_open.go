package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Names of the stores that are opened.
const (
	nameOpenRandom     = "dmfuse, random places"
	nameOpenSequential = "dmfuse, consecutive"
)

// openMany is the number of exceptions of a store that is opened.
const openMany = 10_000_000

// openStore is the time of the command that loads a table with a store of ten
// million exceptions, until the first byte of the snapshot was read.
func openStore(sequential bool) func(context.Context, *place, options) (float64, error) {
	return func(ctx context.Context, p *place, o options) (_ float64, err error) {
		const chunks = 1 << 31 // of the origin, 4 KiB each
		d, err := p.daemonOf(o.bin)
		if err != nil {
			return 0, err
		}
		var end cleanups
		defer func() { err = errors.Join(err, end.run()) }()
		origin, cow := p.path("vast"), p.path("store")
		for _, path := range []string{origin, cow} {
			end.add(func() error { return os.RemoveAll(path) })
		}
		if err := os.WriteFile(origin, nil, 0o600); err != nil {
			return 0, err
		}
		if err := errors.Join(os.Truncate(origin, chunks<<12), writeStore(cow, openMany, chunks, sequential)); err != nil {
			return 0, err
		}
		name := filepath.Base(p.path("open"))
		begin := time.Now()
		if err := d.do(ctx, "create", name, "--readonly", "--table", fmt.Sprintf("0 %d snapshot %s %s P 8", int64(chunks)*8, origin, cow)); err != nil {
			return 0, err
		}
		end.add(func() error { return d.do(context.WithoutCancel(ctx), "remove", name) })
		f, err := os.Open(d.file(name))
		if err != nil {
			return 0, err
		}
		end.add(f.Close)
		if _, err := f.Read(make([]byte, 4096)); err != nil {
			return 0, err
		}
		return float64(time.Since(begin).Microseconds()) / 1000, nil
	}
}

// writeStore writes a store of n exceptions with chunks of 4 KiB in the kernel's
// format (docs/formats.md): of consecutive chunks, or of distinct ones in random
// places below chunks, a power of two.
func writeStore(path string, n, chunks uint64, sequential bool) (err error) {
	const chunk, perArea = 4096, 4096 / 16
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var header [16]byte
	for i, word := range []uint32{0x70416e53, 1, 1, chunk / 512} { // magic, valid, version, chunk size
		binary.LittleEndian.PutUint32(header[4*i:], word)
	}
	if _, err := f.WriteAt(header[:], 0); err != nil {
		return err
	}
	areas := (n + perArea - 1) / perArea
	if err := f.Truncate(int64((1 + (areas+1)*(perArea+1)) * chunk)); err != nil {
		return err
	}
	w := bufio.NewWriterSize(nil, chunk)
	for k := uint64(0); k < n; {
		area := 1 + k/perArea*(perArea+1)
		if _, err := f.Seek(int64(area*chunk), 0); err != nil {
			return err
		}
		w.Reset(f)
		for i := uint64(1); i <= perArea && k < n; i, k = i+1, k+1 {
			old := k
			if !sequential {
				// Two rounds that can be undone: no number comes twice.
				for range 2 {
					old = old * 0x9e3779b97f4a7c15 & (chunks - 1)
					old ^= old >> 16
				}
			}
			var e [16]byte
			binary.LittleEndian.PutUint64(e[:], old)
			binary.LittleEndian.PutUint64(e[8:], area+i)
			_, _ = w.Write(e[:]) // the error is that of Flush
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	return nil
}
