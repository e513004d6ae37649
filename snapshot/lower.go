package snapshot

import (
	"context"
	"errors"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// readAll fills p. It takes no context: it is for work that has begun.
func readAll(d target.Lower, p []byte, off int64) error {
	return target.ReadLower(context.Background(), d, p, off)
}

// writeAll writes p, durably if fua is set, without a context.
func writeAll(d target.Lower, p []byte, off int64, fua bool) error {
	return within(d, off, int64(len(p)), target.WriteLower(context.Background(), d, p, off, fua))
}

// within makes an I/O error of a range error of a lower device: that it is too
// short is not the caller's mistake.
func within(d target.Lower, off, n int64, err error) error {
	if err == nil || !errors.Is(err, blockdev.ErrRange) {
		return err
	}
	return &blockdev.Error{Op: "write", Device: d.Name(), Offset: off, Length: n, Err: blockdev.ErrIO}
}
