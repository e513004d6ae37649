package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"unicode/utf16"
)

// partition is an entry of a partition table.
type partition struct {
	Number     int    `json:"number"` // as the kernel counts: logical ones of a dos table from 5
	StartBytes int64  `json:"start_bytes"`
	SizeBytes  int64  `json:"size_bytes"`
	Type       string `json:"type"`           // "0x83", or the uuid of a GPT type
	Name       string `json:"name,omitempty"` // GPT only
	Extended   bool   `json:"-"`              // holds the logical ones and no data
}

// Limits on what is read of a table that may be damaged on purpose.
const (
	maxGPTEntries = 1024
	maxLogical    = 128
)

// readPartitions fills in the partition table: a GPT in sectors of 512 or 4096
// bytes, else a DOS one.
func (c *contents) readPartitions(r io.ReaderAt, size int64, head []byte) error {
	for _, sector := range []int64{512, 4096} {
		parts, ok, err := readGPT(r, size, sector)
		if err != nil {
			return err
		}
		if ok {
			c.Table, c.SectorSize, c.Partitions = "gpt", int(sector), parts
			return nil
		}
	}
	parts, ok, err := readDOS(r, size, head)
	if ok {
		c.Table, c.Partitions = "dos", parts
	}
	return err
}

// readGPT reads the primary GPT (UEFI specification, chapter 5.3). A header
// or entries with a wrong checksum are no table, as for the kernel.
func readGPT(r io.ReaderAt, size, sector int64) ([]partition, bool, error) {
	h := make([]byte, 512)
	if size < 3*sector {
		return nil, false, nil
	}
	if _, err := r.ReadAt(h, sector); err != nil {
		return nil, false, err
	}
	le := binary.LittleEndian
	length, count, each := le.Uint32(h[12:]), le.Uint32(h[80:]), le.Uint32(h[84:])
	first := le.Uint64(h[72:])
	if string(h[:8]) != "EFI PART" || length < 92 || length > 512 || each < 128 || each > 4096 || count > maxGPTEntries ||
		first < 2 || first > uint64(size/sector) {
		return nil, false, nil
	}
	sum := le.Uint32(h[16:])
	le.PutUint32(h[16:], 0)
	if crc32.ChecksumIEEE(h[:length]) != sum {
		return nil, false, nil
	}
	table := make([]byte, int(count)*int(each))
	if _, err := r.ReadAt(table, int64(first)*sector); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, false, nil
		}
		return nil, false, err
	}
	if crc32.ChecksumIEEE(table) != le.Uint32(h[88:]) {
		return nil, false, nil
	}
	var parts []partition
	for i := range int(count) {
		e := table[i*int(each):][:128]
		start, end := le.Uint64(e[32:]), le.Uint64(e[40:])
		if isZero(e[:16]) || end < start || end >= uint64(size/sector) {
			continue
		}
		parts = append(parts, partition{
			Number: i + 1, StartBytes: int64(start) * sector, SizeBytes: int64(end-start+1) * sector,
			Type: guidText(e[:16]), Name: utf16Text(e[56:128]),
		})
	}
	return parts, true, nil
}

// guidText prints a GUID, whose first three fields are little-endian.
func guidText(b []byte) string {
	c := slices.Clone(b[:16])
	slices.Reverse(c[:4])
	slices.Reverse(c[4:6])
	slices.Reverse(c[6:8])
	return uuidText(c)
}

// utf16Text reads a name in UTF-16 that ends at a zero.
func utf16Text(b []byte) string {
	var u []uint16
	for ; len(b) >= 2 && (b[0] != 0 || b[1] != 0); b = b[2:] {
		u = append(u, binary.LittleEndian.Uint16(b))
	}
	return strings.ToValidUTF8(string(utf16.Decode(u)), "?")
}

// readDOS reads a DOS partition table with its chain of logical partitions. A
// boot sector without a plausible entry is no table.
func readDOS(r io.ReaderAt, size int64, head []byte) ([]partition, bool, error) {
	if len(head) < 512 || head[510] != 0x55 || head[511] != 0xaa {
		return nil, false, nil
	}
	var parts, logical []partition
	for i := range 4 {
		e := head[446+16*i:][:16]
		if e[0]&0x7f != 0 {
			return nil, false, nil // boot code that happens to end like a table
		}
		p, used := dosEntry(e, 0, i+1)
		if !used {
			continue
		}
		if p.StartBytes+p.SizeBytes > size {
			p.SizeBytes = max(0, size-p.StartBytes)
		}
		parts = append(parts, p)
		if p.Extended && logical == nil {
			var err error
			if logical, err = readLogical(r, size, p.StartBytes); err != nil {
				return nil, false, err
			}
		}
	}
	return append(parts, logical...), len(parts) > 0, nil
}

// dosEntry decodes an entry whose start counts from base; false when unused.
func dosEntry(e []byte, base int64, number int) (partition, bool) {
	start := int64(binary.LittleEndian.Uint32(e[8:]))
	sectors := int64(binary.LittleEndian.Uint32(e[12:]))
	kind := e[4]
	return partition{
		Number: number, StartBytes: base + start*512, SizeBytes: sectors * 512, Type: fmt.Sprintf("0x%02x", kind),
		Extended: bytes.IndexByte([]byte{0x05, 0x0f, 0x85}, kind) >= 0,
	}, kind != 0 && sectors != 0
}

// readLogical follows the chain of extended boot records: in each, the first
// entry is the logical partition (its start counts from this record), the
// second the next record (its start counts from the first one).
func readLogical(r io.ReaderAt, size, first int64) ([]partition, error) {
	var parts []partition
	ebr := make([]byte, 512)
	for at, n := first, 0; n < maxLogical && at+512 <= size; n++ {
		if _, err := r.ReadAt(ebr, at); err != nil {
			return nil, err
		}
		if ebr[510] != 0x55 || ebr[511] != 0xaa {
			break
		}
		if p, used := dosEntry(ebr[446:462], at, 5+len(parts)); used && !p.Extended && p.StartBytes+p.SizeBytes <= size {
			parts = append(parts, p)
		}
		next, used := dosEntry(ebr[462:478], first, 0)
		if !used || !next.Extended || next.StartBytes <= at {
			break
		}
		at = next.StartBytes
	}
	return parts, nil
}
