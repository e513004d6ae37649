package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// contentClass groups what a device can hold by what it means for us.
type contentClass int

const (
	classUnknown    contentClass = iota // nothing we know
	classFileSystem                     // can be mounted
	classImage                          // a disk in a container of its own (qcow2): not the disk itself
	classPacked                         // compressed or an archive
	classVolume                         // encryption, volume manager, RAID, swap: used through something else
	classStore                          // a COW store or mirror log
)

// contents is what the first bytes of a device or file say it holds.
type contents struct {
	Class      contentClass
	Format     string      // "ext4", "qcow2", "luks", …; empty when unknown
	UUID       string      // of a file system, where it has one we read
	Table      string      // "gpt" or "dos" when there is a partition table
	SectorSize int         // the unit of the partition table, 512 or 4096
	Partitions []partition // by number
	Tail       int64       // bytes after the last whole sector
}

// probeLength is how much of the beginning is looked at.
const probeLength = 128 << 10

// magic is a run of bytes at a place that marks a format.
type magic struct {
	off    int
	bytes  string
	class  contentClass
	format string
}

// magics are tried in order; the first match counts. Formats that overlap
// others (a boot sector in front of a file system) come later.
var magics = []magic{
	{0, "QFI\xfb", classImage, "qcow2"},
	{0, "QED\x00", classImage, "qed"},
	{0, "KDMV", classImage, "vmdk"},
	{0, "COWD", classImage, "vmdk"},
	{0, "# Disk DescriptorFile", classImage, "vmdk"},
	{0, "vhdxfile", classImage, "vhdx"},
	{0, "conectix", classImage, "vhd"},
	{64, "\x7f\x10\xda\xbe", classImage, "vdi"},
	{0, "WithoutFreeSpace", classImage, "parallels"},
	{0, "WithouFreSpacExt", classImage, "parallels"},
	{0, "\x1f\x8b\x08", classPacked, "gzip"},
	{0, "\xfd7zXZ\x00", classPacked, "xz"},
	{0, "\x28\xb5\x2f\xfd", classPacked, "zstd"},
	{0, "BZh", classPacked, "bzip2"},
	{0, "\x04\x22\x4d\x18", classPacked, "lz4"},
	{0, "LZIP", classPacked, "lzip"},
	{0, "PK\x03\x04", classPacked, "zip"},
	{0, "7z\xbc\xaf\x27\x1c", classPacked, "7z"},
	{257, "ustar", classPacked, "tar"},
	{0, "SnAp", classStore, "snapshot store"},
	{0, "rRiM", classStore, "mirror log"},
	{0, "LUKS\xba\xbe", classVolume, "luks"},
	{0, "XFSB", classFileSystem, "xfs"},
	{0x10040, "_BHRfS_M", classFileSystem, "btrfs"},
	{0x438, "\x53\xef", classFileSystem, "ext"},
	{0x400, "\x10\x20\xf5\xf2", classFileSystem, "f2fs"},
	{0x400, "\xe2\xe1\xf5\xe0", classFileSystem, "erofs"},
	{0, "hsqs", classFileSystem, "squashfs"},
	{0x8001, "CD001", classFileSystem, "iso9660"},
	{4086, "SWAPSPACE2", classVolume, "swap"},
	{4086, "SWAP-SPACE", classVolume, "swap"},
	{65526, "SWAPSPACE2", classVolume, "swap"},
	{0x1000, "\xfc\x4e\x2b\xa9", classVolume, "md raid"},
	{0, "LABELONE", classVolume, "lvm2"},
	{0x200, "LABELONE", classVolume, "lvm2"},
	{0x400, "LABELONE", classVolume, "lvm2"},
	{0x600, "LABELONE", classVolume, "lvm2"},
	{3, "NTFS    ", classFileSystem, "ntfs"},
	{3, "EXFAT   ", classFileSystem, "exfat"},
	{54, "FAT12   ", classFileSystem, "vfat"},
	{54, "FAT16   ", classFileSystem, "vfat"},
	{82, "FAT32   ", classFileSystem, "vfat"},
}

// probe looks at the first bytes of size bytes and says what they hold. It
// fails only when they cannot be read.
func probe(r io.ReaderAt, size int64) (contents, error) {
	c := contents{Tail: size % 512, SectorSize: 512}
	head := make([]byte, min(size, probeLength))
	if _, err := r.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return c, err
	}
	for _, m := range magics {
		if m.off+len(m.bytes) <= len(head) && string(head[m.off:m.off+len(m.bytes)]) == m.bytes {
			c.Class, c.Format = m.class, m.format
			c.refine(head)
			break
		}
	}
	if c.Class == classUnknown && isFixedVHD(r, size) {
		c.Class, c.Format = classImage, "vhd"
	}
	if c.Class == classUnknown || c.Format == "iso9660" { // a hybrid image has both
		if err := c.readPartitions(r, size, head); err != nil {
			return c, err
		}
	}
	return c, nil
}

// refine reads what a format says of itself beyond its magic.
func (c *contents) refine(head []byte) {
	switch c.Format {
	case "ext":
		c.Format, c.UUID = extName(head[0x400:]), uuidText(head[0x468:0x478])
	case "xfs":
		c.UUID = uuidText(head[32:48])
	case "btrfs":
		c.UUID = uuidText(head[0x10020:0x10030])
	}
}

// extName tells ext2, ext3 and ext4 apart by the features of the superblock
// (kernel: fs/ext4/ext4.h).
func extName(sb []byte) string {
	const hasJournal = 0x4                // compatible
	const ext3Incompat = 0x2 | 0x4 | 0x10 // filetype, recover, meta_bg
	const ext3ROCompat = 0x1 | 0x2 | 0x4  // sparse_super, large_file, btree_dir
	compat := binary.LittleEndian.Uint32(sb[0x5c:])
	incompat := binary.LittleEndian.Uint32(sb[0x60:])
	roCompat := binary.LittleEndian.Uint32(sb[0x64:])
	switch {
	case incompat&^ext3Incompat != 0 || roCompat&^ext3ROCompat != 0:
		return "ext4"
	case compat&hasJournal != 0:
		return "ext3"
	default:
		return "ext2"
	}
}

// uuidText prints 16 bytes as a uuid.
func uuidText(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// isFixedVHD says whether the last sector is the footer of a VHD image, which
// a fixed one has only there.
func isFixedVHD(r io.ReaderAt, size int64) bool {
	foot := make([]byte, 8)
	for _, n := range []int64{512, 511} { // early versions wrote one byte less
		if size < n {
			continue
		}
		if _, err := r.ReadAt(foot, size-n); err == nil && string(foot) == "conectix" {
			return true
		}
	}
	return false
}

// describe says in words what is there, for messages: "an ext4 file system".
func (c contents) describe() string {
	switch c.Class {
	case classFileSystem:
		return article(c.Format) + " file system"
	case classImage:
		return article(c.Format) + " image"
	case classPacked:
		return article(c.Format) + " file"
	case classVolume, classStore:
		return article(c.Format)
	}
	if c.Table != "" {
		return fmt.Sprintf("a disk with a %s partition table (%s)", c.Table, count(len(c.Partitions), "partition"))
	}
	return "data of an unknown kind"
}

// article is the name of a format with "a" or "an" before it, as it is spoken.
func article(format string) string {
	switch format {
	case "ext2", "ext3", "ext4", "xfs", "f2fs", "iso9660", "ntfs", "erofs", "exfat", "lvm2", "lz4", "xz", "md raid":
		return "an " + format
	}
	return "a " + format
}

// notes are what a user should be told of an origin at path: nothing that
// stops, all of it easily a mistake.
func (c contents) notes(path string) []string {
	var out []string
	switch {
	case c.Class == classImage && c.Format == "vhd":
		out = append(out, fmt.Sprintf("%s is a vhd image: the device shows the bytes of that file, not the disk inside it. To get the disk: qemu-img convert -f vpc -O raw %s DISK", path, path))
	case c.Class == classImage:
		out = append(out, fmt.Sprintf("%s is %s: the device shows the bytes of that file, not the disk inside it. To get the disk: qemu-img convert -f %s -O raw %s DISK", path, c.describe(), c.Format, path))
	case c.Class == classPacked:
		out = append(out, fmt.Sprintf("%s is %s: the device shows the packed bytes. Unpack it first", path, c.describe()))
	case c.Class == classStore:
		out = append(out, fmt.Sprintf("%s is %s, not a disk: the device shows its bytes. For a snapshot store use: dmfuse snapshot open", path, c.describe()))
	}
	if c.Tail != 0 {
		out = append(out, fmt.Sprintf("the last %d bytes of %s are no whole sector of 512 bytes: the device ends before them", c.Tail, path))
	}
	return out
}

// isZero says whether b holds nothing but zeros.
func isZero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }
