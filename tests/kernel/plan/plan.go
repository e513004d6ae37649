// Package plan is what the kernel tests and the program inside their kernels
// tell each other: the steps to run, what came of them, and the content both
// sides write.
package plan

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"unsafe"

	"golang.org/x/sys/unix"
)

// SectorSize is the unit of positions and counts in a [Step].
const SectorSize = 512

// Plan is what the guest does.
type Plan struct {
	ModuleDir string   // where the modules of the guest's kernel are
	Modules   []string // loaded in this order, without ".ko"
	Steps     []Step
	Report    string // file to write the [Report] to
}

// Step is one thing to do: a command or I/O on a device.
type Step struct {
	// Op is "run", "write", "sha", "discard"; "begin", a write that nobody
	// waits for; or "until": the command is run, or the range is summed up,
	// again and again until what comes out matches Want.
	Op    string
	Args  []string
	Want  string // regular expression, for "until"
	Dev   string
	Seed  uint64
	Start int64 // sectors
	Count int64 // sectors; 0 for sha: to the end
}

// Report has a result for each step that was run.
type Report struct {
	Error   string // what kept the guest from running the steps
	Results []Result
}

// Result is what came of a step.
type Result struct {
	Stdout, Stderr string
	Code           int    // exit status of a command
	Error          string // name of an errno, or text
}

// Fill writes pattern seed, as it stands at sector first, over buf: each sector
// is one 64-bit little-endian number, seed<<40 | sector, again and again.
func Fill(buf []byte, seed, first uint64) {
	for i := 0; i < len(buf); i += 8 {
		binary.LittleEndian.PutUint64(buf[i:], seed<<40|(first+uint64(i)/SectorSize))
	}
}

// Sum adds up what is read.
type Sum struct{ hash.Hash }

// NewSum makes an empty sum.
func NewSum() Sum { return Sum{sha256.New()} }

// Text is the sum so far, in hexadecimal.
func (s Sum) Text() string { return hex.EncodeToString(s.Sum(nil)) }

// SumOf is the sum of b.
func SumOf(b []byte) string {
	s := NewSum()
	s.Write(b)
	return s.Text()
}

// Discard sends BLKDISCARD for a start and a length in bytes.
func Discard(fd uintptr, span [2]uint64) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, unix.BLKDISCARD, uintptr(unsafe.Pointer(&span)))
	if errno != 0 {
		return errno
	}
	return nil
}
