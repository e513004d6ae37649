package uring

// Numbers and structures of the kernel (include/uapi/linux/io_uring.h).

// Operations.
const (
	OpPollAdd  = 6
	OpURingCmd = 46
)

// PollMulti, in the length of an OpPollAdd, keeps the poll after an event.
const PollMulti = 1

// MoreFlag in the flags of a completion: others follow for the same entry.
const MoreFlag = 1 << 1

const (
	setupCQSize       = 1 << 3
	setupSubmitAll    = 1 << 7
	setupSQE128       = 1 << 10
	setupSingleIssuer = 1 << 12
	setupDeferTaskrun = 1 << 13

	featSingleMmap = 1 << 0
	featNoDrop     = 1 << 1

	enterGetEvents      = 1 << 0
	enterRegisteredRing = 1 << 4

	registerRingFDs = 20

	offSQRing = 0
	offSQEs   = 0x10000000
)

// params is struct io_uring_params.
type params struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32
	_                                                                      [3]uint32
	sq                                                                     struct {
		head, tail, mask, entries, flags, dropped, array, _ uint32
		_                                                   uint64
	}
	cq struct {
		head, tail, mask, entries, overflow, cqes, flags, _ uint32
		_                                                   uint64
	}
}

// rsrcUpdate is struct io_uring_rsrc_update.
type rsrcUpdate struct {
	offset, _ uint32
	data      uint64
}

// SQE is struct io_uring_sqe in its form of 128 bytes.
type SQE struct {
	Opcode   uint8
	Flags    uint8
	IOPrio   uint16
	FD       int32
	CmdOp    uint32 // of OpURingCmd; lower half of the offset else
	_        uint32
	Addr     uint64
	Len      uint32
	OpFlags  uint32 // the events of OpPollAdd
	UserData uint64
	_        uint64
	Cmd      [80]byte
}

// CQE is struct io_uring_cqe: the end of what was submitted with UserData. Res
// is a result, or an errno below zero.
type CQE struct {
	UserData uint64
	Res      int32
	Flags    uint32
}
