package mirror

import (
	"fmt"

	"github.com/dmfuse/dmfuse/blockdev"
)

// NewLog is a disk log for that many regions, on a device with that logical
// block size: all of [LogSize] bytes. With clean every region is in sync, else
// none is.
func NewLog(regions uint64, block int, clean bool) []byte {
	b := make([]byte, LogSize(regions, block))
	Header{Magic: logMagic, Version: logVersion, Regions: regions}.encode(b)
	if !clean {
		return b
	}
	bits := b[offBits:]
	for i := range regions / 8 {
		bits[i] = 0xff
	}
	if left := regions % 8; left > 0 {
		bits[regions/8] = 1<<left - 1
	}
	return b
}

// A log whose file was made for it has a mark where the kernel keeps what is
// there: whoever takes the mirror apart may delete the file.
const (
	offMade  = 512
	madeMark = "dmfuse: this file was made for the log\n"
)

// MarkMade puts the mark into a new log.
func MarkMade(log []byte) { copy(log[offMade:offBits], madeMark) }

// Made tells whether the log on dev has the mark.
func Made(dev blockdev.Device) (bool, error) {
	b := make([]byte, len(madeMark))
	if h, err := ReadHeader(dev); err != nil || h.Magic != logMagic {
		return false, err
	}
	if n, err := dev.ReadAt(b, offMade); n < len(b) {
		return false, fmt.Errorf("the unused part of the log: %w", err)
	}
	return string(b) == madeMark, nil
}
