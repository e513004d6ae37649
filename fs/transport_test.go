package fs_test

import (
	"bytes"
	"strings"
	"testing"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/dmfuse/dmfuse/fs"
	"github.com/dmfuse/dmfuse/fs/fstest"
)

// Opcodes of the FUSE protocol (kernel: include/uapi/linux/fuse.h).
const (
	opLookup      = 1
	opForget      = 2
	opGetattr     = 3
	opOpen        = 14
	opRead        = 15
	opWrite       = 16
	opRelease     = 18
	opInit        = 26
	opBatchForget = 42
)

// wire talks the FUSE protocol with a file system that is not mounted, through
// fuse.ProtocolServer: another transport than Mount's.
type wire struct {
	t      *testing.T
	ps     *fuse.ProtocolServer
	unique uint64
	out    []byte
}

func newWire(t *testing.T, src fs.Source) *wire {
	o := fs.Options{Log: newStrictLog(t).logger} // a panic would be in it
	f := fs.NewFileSystem(src, o)
	return &wire{t: t, ps: fuse.NewProtocolServer(f, f.FuseOptions(o)), out: make([]byte, 64<<10)}
}

// bytesOf returns the memory of a request structure.
func bytesOf[T any](v *T) []byte { return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v)) }

// call sends a request whose structure begins with the header h, and returns
// errno and payload of the answer.
func (w *wire) call(op uint32, node uint64, h *fuse.InHeader, in ...[]byte) (unix.Errno, []byte) {
	w.t.Helper()
	w.unique++
	*h = fuse.InHeader{Opcode: op, Unique: w.unique, NodeId: node}
	for _, p := range in {
		h.Length += uint32(len(p))
	}
	clear(w.out)
	n, code := w.ps.HandleRequest(in, [][]byte{w.out})
	if !code.Ok() {
		w.t.Fatalf("opcode %d: %v", op, code)
	}
	if n == 0 {
		return 0, nil
	}
	head := (*fuse.OutHeader)(unsafe.Pointer(&w.out[0]))
	if head.Unique != w.unique || int(head.Length) != n {
		w.t.Fatalf("opcode %d: answer %+v of %d bytes", op, *head, n)
	}
	return unix.Errno(-head.Status), w.out[unsafe.Sizeof(*head):n]
}

func (w *wire) init() fuse.InitOut {
	w.t.Helper()
	in := fuse.InitIn{Major: 7, Minor: 42, MaxReadAhead: 128 << 10, Flags: ^uint32(0), Flags2: ^uint32(0)}
	errno, out := w.call(opInit, 0, &in.InHeader, bytesOf(&in))
	if errno != 0 {
		w.t.Fatal(errno)
	}
	return *(*fuse.InitOut)(unsafe.Pointer(&out[0]))
}

func (w *wire) lookup(dir uint64, name string) (uint64, unix.Errno) {
	w.t.Helper()
	var h fuse.InHeader
	errno, out := w.call(opLookup, dir, &h, bytesOf(&h), append([]byte(name), 0))
	if errno != 0 {
		return 0, errno
	}
	return (*fuse.EntryOut)(unsafe.Pointer(&out[0])).NodeId, 0
}

func (w *wire) open(node uint64) fuse.OpenOut {
	w.t.Helper()
	in := fuse.OpenIn{Flags: unix.O_RDWR}
	errno, out := w.call(opOpen, node, &in.InHeader, bytesOf(&in))
	if errno != 0 {
		w.t.Fatal(errno)
	}
	return *(*fuse.OpenOut)(unsafe.Pointer(&out[0]))
}

func (w *wire) read(node, fh uint64, off int64, n int) (string, unix.Errno) {
	w.t.Helper()
	in := fuse.ReadIn{Fh: fh, Offset: uint64(off), Size: uint32(n)}
	errno, out := w.call(opRead, node, &in.InHeader, bytesOf(&in))
	return string(out), errno
}

// write writes data that comes in pieces.
func (w *wire) write(node uint64, off int64, data ...string) (int, unix.Errno) {
	w.t.Helper()
	in := fuse.WriteIn{Offset: uint64(off), Size: uint32(len(strings.Join(data, "")))}
	iov := [][]byte{bytesOf(&in)}
	for _, p := range data {
		iov = append(iov, []byte(p))
	}
	errno, out := w.call(opWrite, node, &in.InHeader, iov...)
	if errno != 0 {
		return 0, errno
	}
	return int((*fuse.WriteOut)(unsafe.Pointer(&out[0])).Size), 0
}

func (w *wire) release(node, fh uint64) {
	w.t.Helper()
	in := fuse.ReleaseIn{Fh: fh}
	if errno, _ := w.call(opRelease, node, &in.InHeader, bytesOf(&in)); errno != 0 {
		w.t.Fatal(errno)
	}
}

func TestTransport_WhatIsNegotiated(t *testing.T) {
	out := newWire(t, fstest.NewList()).init()
	flags := out.Flags64()
	for name, flag := range map[string]uint64{"ASYNC_DIO": fuse.CAP_ASYNC_DIO, "DIRECT_IO_ALLOW_MMAP": fuse.CAP_DIRECT_IO_ALLOW_MMAP,
		"MAX_PAGES": fuse.CAP_MAX_PAGES, "BIG_WRITES": fuse.CAP_BIG_WRITES, "PARALLEL_DIROPS": fuse.CAP_PARALLEL_DIROPS} {
		if flags&flag == 0 {
			t.Errorf("%s is not asked for", name)
		}
	}
	for name, flag := range map[string]uint64{"WRITEBACK_CACHE": fuse.CAP_WRITEBACK_CACHE, "ATOMIC_O_TRUNC": fuse.CAP_ATOMIC_O_TRUNC,
		"READDIRPLUS": fuse.CAP_READDIRPLUS, "PASSTHROUGH": fuse.CAP_PASSTHROUGH, "OVER_IO_URING": fuse.CAP_OVER_IO_URING,
		"POSIX_LOCKS": fuse.CAP_POSIX_LOCKS, "FLOCK_LOCKS": fuse.CAP_FLOCK_LOCKS} {
		if flags&flag != 0 {
			t.Errorf("%s is asked for", name)
		}
	}
	if out.MaxWrite != 1<<20 || out.MaxPages != 256 || out.MaxBackground < 1000 || out.CongestionThreshold < 1000 {
		t.Errorf("limits: %+v", out)
	}
}

func TestTransport_FilesWithoutMount(t *testing.T) {
	dev := fstest.NewMemory(3, "vol", 10_000)
	w := newWire(t, fstest.NewList(dev))
	w.init()
	node, errno := w.lookup(fuse.FUSE_ROOT_ID, "vol")
	if node != 4<<4 || errno != 0 {
		t.Fatalf("lookup: node %d, %v", node, errno)
	}
	if _, errno := w.lookup(fuse.FUSE_ROOT_ID, "other"); errno != unix.ENOENT {
		t.Errorf("lookup of nothing: %v", errno)
	}
	if out := w.open(node); out.Fh != 0 || out.OpenFlags != fuse.FOPEN_DIRECT_IO|fuse.FOPEN_PARALLEL_DIRECT_WRITES {
		t.Errorf("open: %+v", out)
	}
	if n, errno := w.write(node, 100, "in ", "three ", "pieces"); n != 15 || errno != 0 {
		t.Errorf("write: %d, %v", n, errno)
	}
	if got, errno := w.read(node, 0, 100, 15); got != "in three pieces" || errno != 0 {
		t.Errorf("read: %q, %v", got, errno)
	}
	if n, errno := w.write(node, 9_995, "abc", "def", "ghi"); n != 5 || errno != 0 {
		t.Errorf("write over the end: %d, %v", n, errno)
	}
	if got, errno := w.read(node, 0, 9_990, 100); got != "\x00\x00\x00\x00\x00abcde" || errno != 0 {
		t.Errorf("read over the end: %q, %v", got, errno)
	}
	if _, errno := w.write(node, 10_000, "a", "b"); errno != unix.ENOSPC {
		t.Errorf("write behind the end: %v", errno)
	}
	w.release(node, 0)
	if dev.Opens() != 0 {
		t.Errorf("%d opens", dev.Opens())
	}
}

// A daemon that takes over a mount meets nodes, handles and counts that it
// never gave out.
func TestTransport_TakenOver(t *testing.T) {
	dev := fstest.NewMemory(3, "vol", 10_000)
	src := fstest.NewList(dev)
	first := newWire(t, src)
	first.init()
	node, _ := first.lookup(fuse.FUSE_ROOT_ID, "vol")
	fh := first.open(node).Fh
	infos, _ := first.lookup(2, "vol")
	table, _ := first.lookup(infos, "table")
	info := first.open2(table)

	second := newWire(t, src)
	second.init()
	if n, errno := second.write(node, 0, "taken over"); n != 10 || errno != 0 {
		t.Errorf("write: %d, %v", n, errno)
	}
	if got, errno := second.read(node, fh, 0, 10); got != "taken over" || errno != 0 {
		t.Errorf("read: %q, %v", got, errno)
	}
	if got, errno := second.read(table, info, 0, 100); !strings.HasPrefix(got, "table of vol") || errno != 0 {
		t.Errorf("information: %q, %v", got, errno)
	}
	if again, _ := second.lookup(fuse.FUSE_ROOT_ID, "vol"); again != node {
		t.Errorf("node %d before, %d after", node, again)
	}
	var forget struct {
		fuse.InHeader
		count, dummy uint32
		one          [2]struct{ node, n uint64 }
	}
	forget.count = 2
	forget.one[0].node, forget.one[0].n = node, 1000
	forget.one[1].node, forget.one[1].n = 123_456, 1
	second.call(opBatchForget, 0, &forget.InHeader, bytesOf(&forget))
	single := fuse.ForgetIn{Nlookup: 77}
	second.call(opForget, node, &single.InHeader, bytesOf(&single))
	before := dev.Opens()
	second.release(node, fh)
	second.release(table, info)
	if dev.Opens() != before {
		t.Error("an open that was never counted was taken back")
	}
	if got, errno := second.read(node, fh, 0, 5); got != "taken" || errno != 0 {
		t.Errorf("read after it: %q, %v", got, errno)
	}
	// Of a device that is gone, only an error is left.
	src.Remove(dev)
	if _, errno := second.read(node, fh, 0, 5); errno != unix.ENOENT {
		t.Errorf("read of a removed device: %v", errno)
	}
}

// open2 opens for reading and returns the handle.
func (w *wire) open2(node uint64) uint64 {
	w.t.Helper()
	in := fuse.OpenIn{Flags: unix.O_RDONLY}
	errno, out := w.call(opOpen, node, &in.InHeader, bytesOf(&in))
	if errno != 0 {
		w.t.Fatal(errno)
	}
	return (*fuse.OpenOut)(unsafe.Pointer(&out[0])).Fh
}

// Requests with any node id and any numbers get an answer, never a panic.
func TestTransport_Nonsense(t *testing.T) {
	w := newWire(t, fstest.NewList(fstest.NewMemory(0, "vol", 10_000)))
	w.init()
	for _, node := range []uint64{0, 1, 2, 3, 15, 16, 17, 18, 22, 23, 31, 32, 1 << 40, 1<<63 + 16, 1<<64 - 2} {
		for op := uint32(1); op < 54; op++ {
			if op == opInit || op == 36 || op == 38 {
				continue
			}
			for _, fill := range []byte{0, 1, 0x7f, 0xff} {
				var in struct {
					fuse.InHeader
					rest [88]byte
				}
				copy(in.rest[:], bytes.Repeat([]byte{fill}, len(in.rest)))
				if op == opRead || op == 28 || op == 44 || op == 22 || op == 23 || op == 39 {
					// The size of the answer is the kernel's to keep within bounds.
					clear(in.rest[:])
					copy(in.rest[8:16], bytes.Repeat([]byte{fill}, 8))
					in.rest[17] = 1
				}
				w.call(op, node, &in.InHeader, bytesOf(&in))
			}
		}
	}
}
