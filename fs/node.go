package fs

// Node ids. A node id must mean the same to a daemon that takes the mount over
// as to the one that gave it out, so nothing is counted: it is the serial
// number of the device and what is meant of it.
//
//	id = (serial + 1) << 4 | part
//
// The sixteen ids below the first device are fixed: 1 is the root (the kernel
// says so), 2 is the directory .dmfuse.
const (
	rootID     uint64 = 1
	infoRootID uint64 = 2

	partBits = 4
	partMask = 1<<partBits - 1
)

// part is what of a device a node is.
type part uint64

const (
	partFile      part = 0 // the device file
	partInfoDir   part = 1 // .dmfuse/NAME
	partInfoFirst part = 2 // .dmfuse/NAME/table, and the other kinds after it
)

// maxSerial is the largest serial number that has node ids and directory
// cookies (which the kernel takes as signed).
const maxSerial = 1<<(63-partBits) - 2

// nodeID returns the id of a part of the device with this serial number.
func nodeID(serial uint64, p part) uint64 { return (serial+1)<<partBits | uint64(p) }

// splitID is the reverse of nodeID; ok is false for the fixed ids.
func splitID(id uint64) (serial uint64, p part, ok bool) {
	if id>>partBits == 0 {
		return 0, 0, false
	}
	return id>>partBits - 1, part(id & partMask), true
}

// infoKind returns the kind of an information file.
func (p part) infoKind() (string, bool) {
	if p < partInfoFirst || int(p-partInfoFirst) >= len(infoKinds) {
		return "", false
	}
	return infoKinds[p-partInfoFirst], true
}
