package clone

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

const (
	metaMagic   = "dmfclone"
	metaVersion = 1
	metaBlock   = 4096 // bits begin here; the unit of the status, as the kernel's

	wordsPerSector = 63
	bitsPerSector  = wordsPerSector * 64
	sumOffset      = blockdev.SectorSize - 4

	// What the kernel's metadata has at byte 32 (SUPERBLOCK_MAGIC, kernel:
	// dm-clone-metadata.c).
	kernelMagic       = 0x8af27f64
	kernelMagicOffset = 32

	// ioSectors is how many sectors of bits are read or written in one go.
	ioSectors = 256
)

// bitSectors is the number of sectors that n bits take.
func bitSectors(n uint64) uint64 { return (n + bitsPerSector - 1) / bitsPerSector }

// metaBlocks is the number of blocks that the metadata of n regions takes.
func metaBlocks(n uint64) uint64 {
	return 1 + (bitSectors(n)*blockdev.SectorSize+metaBlock-1)/metaBlock
}

// metadata is the device with the bits.
type metadata struct {
	dev     target.Lower
	region  blockdev.Sector
	length  blockdev.Sector
	regions uint64
}

// open checks the device, and makes a blank one ready.
func (m *metadata) open(ctx context.Context, readOnly bool) error {
	if need := int64(metaBlocks(m.regions)) * metaBlock; m.dev.Size() < need {
		return fmt.Errorf("%w: metadata device %s has %d bytes, %d are needed for %d regions",
			blockdev.ErrInvalid, m.dev.Name(), m.dev.Size(), need, m.regions)
	}
	first := make([]byte, metaBlock)
	if err := target.ReadLower(ctx, m.dev, first, 0); err != nil {
		return err
	}
	if !bytes.Equal(first, make([]byte, metaBlock)) {
		return m.check(first[:blockdev.SectorSize])
	}
	if readOnly {
		return fmt.Errorf("%w: metadata device %s is blank, and a read-only table cannot make it ready", blockdev.ErrInvalid, m.dev.Name())
	}
	return m.format(ctx)
}

// check compares the super sector with the table.
func (m *metadata) check(p []byte) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: metadata device %s: %s", blockdev.ErrInvalid, m.dev.Name(), fmt.Sprintf(format, args...))
	}
	le := binary.LittleEndian
	if string(p[:8]) != metaMagic {
		if le.Uint64(p[kernelMagicOffset:]) == kernelMagic {
			return bad("it holds metadata of the kernel's clone target, which cannot be read here; finish that clone there, or zero the first %d bytes to begin again", metaBlock)
		}
		return bad("it holds other data; zero its first %d bytes to use it", metaBlock)
	}
	if got, want := le.Uint32(p[sumOffset:]), checksum(p); got != want {
		return bad("its super sector is damaged: checksum %#08x, expected %#08x", got, want)
	}
	if v := le.Uint32(p[8:]); v != metaVersion {
		return bad("version %d, expected %d", v, metaVersion)
	}
	if n := le.Uint64(p[16:]); n != uint64(m.region) {
		return bad("its regions have %d sectors, the table says %d", n, uint64(m.region))
	}
	if n := le.Uint64(p[24:]); n != uint64(m.length) {
		return bad("it is for a segment of %d sectors, the table says %d", n, uint64(m.length))
	}
	return nil
}

// format writes all bits as 0, then the super sector, each durably.
func (m *metadata) format(ctx context.Context) error {
	list := make([]bitSector, ioSectors)
	for s, end := uint64(0), bitSectors(m.regions); s < end; {
		n := min(ioSectors, end-s)
		for i := range n {
			list[i].n = s + i
		}
		if err := m.write(ctx, list[:n]); err != nil {
			return err
		}
		s += n
	}
	if err := target.FlushLower(ctx, m.dev); err != nil {
		return err
	}
	p := make([]byte, blockdev.SectorSize)
	le := binary.LittleEndian
	copy(p, metaMagic)
	le.PutUint32(p[8:], metaVersion)
	le.PutUint64(p[16:], uint64(m.region))
	le.PutUint64(p[24:], uint64(m.length))
	le.PutUint64(p[32:], m.regions)
	le.PutUint32(p[sumOffset:], checksum(p))
	return target.WriteLower(ctx, m.dev, p, 0, true)
}

// again reads the super sector once more.
func (m *metadata) again(ctx context.Context) error {
	p := make([]byte, blockdev.SectorSize)
	if err := target.ReadLower(ctx, m.dev, p, 0); err != nil {
		return err
	}
	return m.check(p)
}

// load reads the bits.
func (m *metadata) load(ctx context.Context) (*bitmap, error) {
	b := newBitmap(m.regions)
	buf := make([]byte, ioSectors*blockdev.SectorSize)
	for s, end := uint64(0), bitSectors(m.regions); s < end; {
		n := min(ioSectors, end-s)
		p := buf[:n*blockdev.SectorSize]
		if err := target.ReadLower(ctx, m.dev, p, sectorOffset(s)); err != nil {
			return nil, err
		}
		for ; n > 0; n, s, p = n-1, s+1, p[blockdev.SectorSize:] {
			if err := m.decode(b, s, p[:blockdev.SectorSize]); err != nil {
				return nil, err
			}
		}
	}
	return b, nil
}

func (m *metadata) decode(b *bitmap, s uint64, p []byte) error {
	le := binary.LittleEndian
	if le.Uint32(p[sumOffset:]) != checksum(p) || uint64(le.Uint32(p[sumOffset-4:])) != s {
		return fmt.Errorf("%w: metadata device %s: the sector of bits at byte %d (regions %d to %d) is damaged",
			blockdev.ErrInvalid, m.dev.Name(), sectorOffset(s), s*bitsPerSector, min(m.regions, (s+1)*bitsPerSector)-1)
	}
	for i := range uint64(wordsPerSector) {
		for w, r := le.Uint64(p[i*8:]), s*bitsPerSector+i*64; w != 0 && r < m.regions; w, r = w>>1, r+1 {
			if w&1 == 1 {
				b.mark(r, 1)
			}
		}
	}
	return nil
}

// bitSector is the content of one sector of bits at one moment.
type bitSector struct {
	n     uint64
	words [wordsPerSector]uint64
}

// sector copies a sector of bits.
func (b *bitmap) sector(n uint64) bitSector {
	s := bitSector{n: n}
	for i := range s.words {
		s.words[i] = b.words[n*wordsPerSector+uint64(i)].Load()
	}
	return s
}

// write writes sectors, in rising order, neighbours together. Nothing is
// flushed.
func (m *metadata) write(ctx context.Context, list []bitSector) error {
	var buf []byte
	for len(list) > 0 {
		k := 1
		for k < min(len(list), ioSectors) && list[k].n == list[0].n+uint64(k) {
			k++
		}
		buf = buf[:0]
		for i := range list[:k] {
			buf = list[i].encode(buf)
		}
		if err := target.WriteLower(ctx, m.dev, buf, sectorOffset(list[0].n), false); err != nil {
			return err
		}
		list = list[k:]
	}
	return nil
}

func (s *bitSector) encode(buf []byte) []byte {
	le := binary.LittleEndian
	at := len(buf)
	for _, w := range s.words {
		buf = le.AppendUint64(buf, w)
	}
	buf = le.AppendUint32(buf, uint32(s.n))
	return le.AppendUint32(buf, crc32.Checksum(buf[at:at+sumOffset], crc32.MakeTable(crc32.Castagnoli)))
}

func checksum(p []byte) uint32 {
	return crc32.Checksum(p[:sumOffset], crc32.MakeTable(crc32.Castagnoli))
}

func sectorOffset(s uint64) int64 { return metaBlock + int64(s)*blockdev.SectorSize }
