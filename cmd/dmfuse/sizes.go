package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/snapshot"
)

// sizeUnits are the suffixes of a size on the command line, as bytes.
var sizeUnits = map[byte]int64{
	'b': 1, 's': 512, 'k': 1 << 10, 'm': 1 << 20, 'g': 1 << 30, 't': 1 << 40,
}

// parseSize reads a size as users type it: a whole number of bytes, or a
// number with one of the suffixes s b k m g t (sectors, bytes, powers of 1024;
// either case).
func parseSize(text string) (int64, error) {
	digits, unit := text, int64(1)
	if n := len(text); n > 0 {
		if u, ok := sizeUnits[strings.ToLower(text[n-1:])[0]]; ok {
			digits, unit = text[:n-1], u
		}
	}
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return 0, fmt.Errorf("%q is no size: give a whole number of bytes, or a number with one of the suffixes s b k m g t, such as 64m", text)
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n > math.MaxInt64/unit {
		return 0, fmt.Errorf("%q is larger than any device can be", text)
	}
	return n * unit, nil
}

// sizeFlag is a flag that holds a size in bytes (pflag.Value).
type sizeFlag struct {
	bytes int64
	text  string // as typed, or the default as shown in the help
	given bool
}

// newSizeFlag is a size flag with a default, which must parse.
func newSizeFlag(text string) *sizeFlag {
	f := &sizeFlag{text: text}
	if text != "" {
		n, err := parseSize(text)
		if err != nil {
			panic(err)
		}
		f.bytes = n
	}
	return f
}

func (f *sizeFlag) String() string { return f.text }

func (f *sizeFlag) Type() string { return "SIZE" }

// Set takes the text of the command line.
func (f *sizeFlag) Set(text string) error {
	n, err := parseSize(text)
	if err != nil {
		return err
	}
	f.bytes, f.text, f.given = n, text, true
	return nil
}

// formatSize prints bytes for people, with at most one decimal ("512 bytes",
// "4 KiB", "1.5 GiB").
func formatSize(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d bytes", n)
	}
	return (&app{}).size(n)
}

// chunkSizeMax is the largest chunk size of a snapshot, in bytes (kernel:
// dm-exception-store.c refuses more sectors than INT_MAX>>9).
const chunkSizeMax = 1 << 30

// checkChunkSize refuses a chunk size that no snapshot can have, in bytes.
// blockSizes are the logical block sizes of the origin and of the COW device.
func checkChunkSize(chunk int64, blockSizes ...int) error {
	if chunk < 512 || chunk > chunkSizeMax || chunk&(chunk-1) != 0 {
		return fmt.Errorf("a chunk size of %s is not possible: it is a power of two from 512 bytes to 1g; 4k suits most uses", formatSize(chunk))
	}
	for _, b := range blockSizes {
		if b > 0 && chunk%int64(b) != 0 {
			return fmt.Errorf("a chunk size of %s is not possible: a device below has a logical block size of %d bytes, and the chunk size must be a multiple of it", formatSize(chunk), b)
		}
	}
	return nil
}

// cowSizeFor is the size in bytes that a COW device needs so that a snapshot
// of an origin of originSize bytes can never overflow.
func cowSizeFor(originSize, chunk int64, transient bool) (int64, error) {
	if originSize > math.MaxInt64/2 {
		return 0, fmt.Errorf("an origin of %s is too large for a COW file that never overflows; give --cow-size", formatSize(originSize))
	}
	sectors := blockdev.SectorsIn(originSize + 511)
	return snapshot.NeededSize(sectors, blockdev.SectorsIn(chunk), !transient).CheckedBytes()
}

// minCowChunks is the smallest persistent store that holds one changed chunk:
// header, one metadata area, one chunk of data (lvm2 allows no less).
const minCowChunks = 3
