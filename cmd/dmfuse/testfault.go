package main

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/dmfuse/dmfuse/fs"
)

// testFault is the faults of the daemon itself that tests want to see survived,
// from DMFUSE_TEST_FAULT, one in each word:
//
//	no-resend               a worker does not ask for the requests of the one before
//	late-note               snapshots that answer first do so before the note has it
//	panic:NAME:OFFSET:FILE  a write at OFFSET of a device ends the process, while
//	                        there is a FILE, which goes; always without one
//	exit, hang              a worker that is an upgrade ends, or does nothing
//	release:VERSION         serve takes the kernel for that one
//	uring:on, uring:off     and takes io_uring to be there, or not
//
// Nothing else reads it, and it does nothing where it is not set.
type testFault []string

func (d *daemon) testFault() testFault { return testFaultOf(d.env) }

func testFaultOf(env func(string) string) testFault {
	if env == nil { // a daemon without a process, in tests
		return nil
	}
	return strings.Fields(env("DMFUSE_TEST_FAULT"))
}

// value is what follows a word, empty where that is not there.
func (t testFault) value(word string) string {
	for _, w := range t {
		if v, ok := strings.CutPrefix(w, word+":"); ok {
			return v
		}
	}
	return ""
}

func (t testFault) has(word string) bool {
	for _, w := range t {
		if w == word {
			return true
		}
	}
	return false
}

// source puts the fault of a device around it.
func (t testFault) source(s fs.Source) fs.Source {
	for _, w := range t {
		if p := strings.SplitN(w, ":", 4); p[0] == "panic" && len(p) == 4 {
			off, err := strconv.ParseInt(p[2], 10, 64)
			if err == nil {
				return panicSource{s, panicDevice{name: p[1], off: off, file: filepath.Clean("/" + p[3])}}
			}
		}
	}
	return s
}

type panicSource struct {
	fs.Source
	p panicDevice
}

type panicDevice struct {
	fs.Device
	name string
	off  int64
	file string // "/": always
}

func (s panicSource) with(d fs.Device, ok bool) (fs.Device, bool) {
	if ok && d.Name() == s.p.name {
		p := s.p
		p.Device = d
		return p, true
	}
	return d, ok
}

func (s panicSource) Lookup(name string) (fs.Device, bool) { return s.with(s.Source.Lookup(name)) }
func (s panicSource) BySerial(serial uint64) (fs.Device, bool) {
	return s.with(s.Source.BySerial(serial))
}

// Fail hands on what the device itself has for that.
func (p panicDevice) Fail(err error) {
	if d, ok := p.Device.(interface{ Fail(error) }); ok {
		d.Fail(err)
	}
}

func (p panicDevice) WriteAt(ctx context.Context, b []byte, off int64, fua bool) (int, error) {
	if off == p.off && (p.file == "/" || os.Remove(p.file) == nil) {
		go panic("a test wants this daemon to die") // of a goroutine that nobody guards
		select {}
	}
	return p.Device.WriteAt(ctx, b, off, fua)
}
