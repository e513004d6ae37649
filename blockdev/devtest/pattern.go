package devtest

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/dmfuse/dmfuse/blockdev"
)

// SeedBits is the size of a pattern's seed: sector s of the pattern with seed
// d is the 64-bit little-endian number d<<40|s, 64 times over.
const SeedBits = 24

const (
	sectorBits = 40
	words      = blockdev.SectorSize / 8
	batch      = 128 // sectors written or read at once
)

func word(seed uint64, s blockdev.Sector) uint64 { return seed<<sectorBits | uint64(s) }

// Pattern is the content of count sectors of pattern seed from sector start.
func Pattern(seed uint64, start, count blockdev.Sector) []byte {
	p := make([]byte, 0, count.Bytes())
	for s := start; s < start+count; s++ {
		for range words {
			p = binary.LittleEndian.AppendUint64(p, word(seed, s))
		}
	}
	return p
}

// Fill writes count sectors of pattern seed at sector start of dev.
func Fill(dev blockdev.Device, seed uint64, start, count blockdev.Sector) error {
	for count > 0 {
		k := min(count, batch)
		if _, err := dev.WriteAt(Pattern(seed, start, k), start.Bytes()); err != nil {
			return err
		}
		start, count = start+k, count-k
	}
	return nil
}

// Mismatch is the first difference that a check found.
type Mismatch struct {
	Sector    blockdev.Sector // of the device
	Byte      int             // within the sector
	Want, Got []byte          // the whole sectors
	Bad       int             // how many of the sectors checked differ
	Checked   int
}

func (m *Mismatch) Error() string {
	return fmt.Sprintf("sector %d differs from byte %d on: expected %s, found %s (%d of %d sectors differ)",
		uint64(m.Sector), m.Byte, Describe(m.Want), Describe(m.Got), m.Bad, m.Checked)
}

// Describe says in words what a sector contains: a sector of a pattern, zeros,
// or the first bytes.
func Describe(sector []byte) string {
	if len(sector) < 8 {
		return fmt.Sprintf("%x", sector)
	}
	first := sector[:8]
	if len(sector)%8 != 0 || !bytes.Equal(sector, bytes.Repeat(first, len(sector)/8)) {
		return fmt.Sprintf("%x… (no pattern)", sector[:min(16, len(sector))])
	}
	v := binary.LittleEndian.Uint64(first)
	if v == 0 {
		return "zeros"
	}
	return fmt.Sprintf("sector %d of pattern %d", v&(1<<sectorBits-1), v>>sectorBits)
}

// Check reads count sectors at sector start of dev and compares them with
// pattern seed. A difference is a [*Mismatch].
func Check(dev blockdev.Device, seed uint64, start, count blockdev.Sector) error {
	return CheckFunc(dev, start, count, func(s blockdev.Sector) []byte { return Pattern(seed, s, 1) })
}

// CheckZero is Check for zeros.
func CheckZero(dev blockdev.Device, start, count blockdev.Sector) error {
	zero := make([]byte, blockdev.SectorSize)
	return CheckFunc(dev, start, count, func(blockdev.Sector) []byte { return zero })
}

// CheckFunc compares each of count sectors at start with what want says.
func CheckFunc(dev blockdev.Device, start, count blockdev.Sector, want func(blockdev.Sector) []byte) error {
	var found *Mismatch
	buf := make([]byte, blockdev.Sector(batch).Bytes())
	for at := start; at < start+count; {
		k := min(start+count-at, batch)
		p := buf[:k.Bytes()]
		if n, err := dev.ReadAt(p, at.Bytes()); n < len(p) {
			return fmt.Errorf("read of %v: %d of %d bytes: %w", blockdev.Range{Start: at, Count: k}, n, len(p), err)
		}
		for i := range k {
			got, w := p[i.Bytes():(i+1).Bytes()], want(at+i)
			if bytes.Equal(got, w) {
				continue
			}
			if found == nil {
				found = mismatch(at+i, w, got)
			}
			found.Bad++
		}
		at += k
	}
	if found == nil {
		return nil
	}
	found.Checked = int(count)
	return found
}

func mismatch(s blockdev.Sector, want, got []byte) *Mismatch {
	m := &Mismatch{Sector: s, Want: bytes.Clone(want), Got: bytes.Clone(got)}
	for m.Byte < len(want) && m.Byte < len(got) && want[m.Byte] == got[m.Byte] {
		m.Byte++
	}
	return m
}
