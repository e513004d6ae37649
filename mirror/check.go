package mirror

import (
	"fmt"
	"io"
	"math/bits"

	"github.com/dmfuse/dmfuse/blockdev"
)

// ProblemKind names what is wrong with a log; the words are stable.
type ProblemKind string

// The kinds of problem that [CheckLog] finds.
const (
	ProblemBlank      ProblemKind = "blank"         // all zero: no log was ever written
	ProblemMagic      ProblemKind = "bad-magic"     // something else is there: the kernel would begin a new log
	ProblemVersion    ProblemKind = "bad-version"   // neither 1 nor 2: the kernel takes nothing for in sync
	ProblemTooSmall   ProblemKind = "too-small"     // the device ends before the bits do
	ProblemRegions    ProblemKind = "other-regions" // another number of regions than the mirror has
	ProblemPadding    ProblemKind = "padding"       // bits behind the last region are set; harmless
	ProblemUnreadable ProblemKind = "unreadable"    // a part of the bits gives an I/O error
)

// Problem is one thing that is wrong with a log.
type Problem struct {
	Kind    ProblemKind `json:"kind"`
	Text    string      `json:"text"`
	Warning bool        `json:"warning"` // no reason to refuse the log
}

// LogReport is what [CheckLog] found.
type LogReport struct {
	Header   Header    `json:"header"`
	Device   int64     `json:"device_bytes"`
	Need     int64     `json:"need_bytes"` // for the regions of the header
	Clean    uint64    `json:"regions_clean"`
	Dirty    uint64    `json:"regions_dirty"` // or out of sync: the log does not tell them apart
	Problems []Problem `json:"problems"`
}

// Damaged tells whether there is a problem that is more than a warning.
func (r *LogReport) Damaged() bool {
	for _, p := range r.Problems {
		if !p.Warning {
			return true
		}
	}
	return false
}

// Err is the first problem that is more than a warning as an error of kind
// invalid, nil if there is none.
func (r *LogReport) Err() error {
	for _, p := range r.Problems {
		if !p.Warning {
			return fmt.Errorf("%w: log: %s", blockdev.ErrInvalid, p.Text)
		}
	}
	return nil
}

func (r *LogReport) add(kind ProblemKind, format string, args ...any) {
	r.Problems = append(r.Problems, Problem{kind, fmt.Sprintf(format, args...), kind == ProblemPadding})
}

// CheckLog looks at the disk log on dev; regions is the number that its mirror
// has, 0: not known. The region size is not in the log and cannot be checked.
// Nothing is written. The error is that of a header that cannot be read; all else
// is in the report.
func CheckLog(dev blockdev.Device, regions uint64) (LogReport, error) {
	h, err := ReadHeader(dev)
	r := LogReport{Header: h, Device: dev.Size(), Problems: []Problem{}}
	if err != nil {
		return r, err
	}
	switch {
	case h == Header{}:
		r.add(ProblemBlank, "there is no log on this device")
		return r, nil
	case h.Magic != logMagic:
		r.add(ProblemMagic, "magic is %#08x, expected %#08x: this is no log of a mirror", h.Magic, uint32(logMagic))
		return r, nil
	case !h.Known():
		r.add(ProblemVersion, "version is %d, known are 1 and 2", h.Version)
	}
	if regions != 0 && regions != h.Regions {
		r.add(ProblemRegions, "the log has %d regions, the mirror %d: another size, another region size, or another mirror's log", h.Regions, regions)
	}
	if h.Regions > uint64(blockdev.MaxSector) || LogSize(h.Regions, blockdev.BlockSize(dev)) > dev.Size() {
		r.add(ProblemTooSmall, "the header says %d regions, for which the %d bytes of the device are too few", h.Regions, dev.Size())
		return r, nil
	}
	r.Need = LogSize(h.Regions, blockdev.BlockSize(dev))
	err = eachWord(dev, h.Regions, func(first, w uint64) {
		n := min(64, h.Regions-first)
		if n < 64 && w>>n != 0 {
			r.add(ProblemPadding, "bits behind region %d are set", h.Regions-1)
			w &= 1<<n - 1
		}
		r.Clean += uint64(bits.OnesCount64(w))
	})
	if err != nil {
		r.add(ProblemUnreadable, "%v", err)
		return r, nil
	}
	r.Dirty = h.Regions - r.Clean
	return r, nil
}

// eachWord gives the bits 64 at a time.
func eachWord(dev blockdev.Device, regions uint64, fn func(first, word uint64)) error {
	buf := make([]byte, 64<<10)
	for first := uint64(0); first < regions; {
		words := min((regions-first+63)/64, uint64(len(buf)/8))
		b := buf[:8*words]
		off := int64(offBits + first/8)
		if n, err := dev.ReadAt(b, off); n < len(b) {
			return fmt.Errorf("bits from byte %d on: %w", off, err)
		}
		for ; len(b) > 0; b, first = b[8:], first+64 {
			var w uint64
			for i := range 8 {
				w |= uint64(b[i]) << (8 * i)
			}
			fn(first, w)
		}
	}
	return nil
}

// DumpLog prints the disk log on dev: the header, and the regions as runs that
// are clean or not.
func DumpLog(w io.Writer, dev blockdev.Device) error {
	r, err := CheckLog(dev, 0)
	if err != nil {
		return err
	}
	p := &printer{w: w}
	p.printf("magic %#08x version %d regions %d\n", r.Header.Magic, r.Header.Version, r.Header.Regions)
	for _, x := range r.Problems {
		p.printf("%s: %s\n", x.Kind, x.Text)
	}
	if r.Need == 0 {
		return p.err
	}
	err = EachRun(dev, r.Header.Regions, func(x LogRun) {
		p.printf("%d..%d %s\n", x.First, x.First+x.Count-1, map[bool]string{true: "clean", false: "dirty"}[x.Clean])
	})
	if err != nil {
		return err
	}
	return p.err
}

// LogRun is a run of regions that the log says the same of.
type LogRun struct {
	First uint64 `json:"first"`
	Count uint64 `json:"count"`
	Clean bool   `json:"clean"` // in sync, with no write under way; else dirty, or out of sync
}

// EachRun gives the bits of a log of so many regions as runs, from the first
// region to the last. The number is that of a header which [CheckLog] found to
// fit the device.
func EachRun(dev blockdev.Device, regions uint64, fn func(LogRun)) error {
	run := LogRun{}
	err := eachWord(dev, regions, func(first, word uint64) {
		for i := range min(64, regions-first) {
			if c := word>>i&1 == 1; c != run.Clean {
				if run.Count > 0 {
					fn(run)
				}
				run = LogRun{First: first + i, Clean: c}
			}
			run.Count++
		}
	})
	if err == nil && run.Count > 0 {
		fn(run)
	}
	return err
}

// printer keeps the first error.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}
