package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"

	"golang.org/x/sys/unix"
)

// openWritten is another subject after one piece in every has been written
// through its file.
func openWritten(open func(context.Context, *place, *opened) error, piece, every int64) func(context.Context, *place, *opened) error {
	return func(ctx context.Context, p *place, o *opened) error {
		if err := open(ctx, p, o); err != nil {
			return err
		}
		return p.write(ctx, o.path, piece, every)
	}
}

// write writes one piece in every of the file, so many bytes each, durably.
func (p *place) write(ctx context.Context, path string, piece, every int64) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	data := make([]byte, piece)
	if _, err := rand.NewChaCha8([32]byte{2}).Read(data); err != nil {
		return err
	}
	for off := int64(0); off < p.size; off += piece * every {
		if _, err := f.WriteAt(data[:min(piece, p.size-off)], off); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return unix.Fdatasync(int(f.Fd()))
}
