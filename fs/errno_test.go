package fs

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/dmfuse/dmfuse/blockdev"
)

// kindErrno is what each kind of package blockdev must become.
var kindErrno = map[string]struct {
	kind  error
	errno syscall.Errno
}{
	"ErrInvalid":     {blockdev.ErrInvalid, syscall.EINVAL},
	"ErrRange":       {blockdev.ErrRange, syscall.EIO},
	"ErrNoSpace":     {blockdev.ErrNoSpace, syscall.ENOSPC},
	"ErrTooBig":      {blockdev.ErrTooBig, syscall.EFBIG},
	"ErrReadOnly":    {blockdev.ErrReadOnly, syscall.EROFS},
	"ErrIO":          {blockdev.ErrIO, syscall.EIO},
	"ErrUnsupported": {blockdev.ErrUnsupported, syscall.EOPNOTSUPP},
	"ErrBusy":        {blockdev.ErrBusy, syscall.EBUSY},
	"ErrNoDevice":    {blockdev.ErrNoDevice, syscall.ENODEV},
	"ErrNoAddress":   {blockdev.ErrNoAddress, syscall.ENXIO},
	"ErrPermission":  {blockdev.ErrPermission, syscall.EACCES},
	"ErrInterrupted": {blockdev.ErrInterrupted, syscall.EINTR},
	"ErrTimeout":     {blockdev.ErrTimeout, syscall.ETIMEDOUT},
	"ErrNotExist":    {blockdev.ErrNotExist, syscall.ENOENT},
	"ErrNoMemory":    {blockdev.ErrNoMemory, syscall.ENOMEM},
	"ErrClosed":      {blockdev.ErrClosed, syscall.EIO},
}

func TestStatus_EveryKind(t *testing.T) {
	for name, c := range kindErrno {
		for _, err := range []error{
			c.kind,
			fmt.Errorf("device vol: %w", c.kind),
			&blockdev.Error{Op: "read", Device: "vol", Err: fmt.Errorf("deeper: %w", c.kind)},
		} {
			if got := status(err); got != fuse.Status(c.errno) {
				t.Errorf("%s as %v: %v, want %v", name, err, got, c.errno)
			}
		}
	}
	if got := status(nil); got != fuse.OK {
		t.Errorf("no error: %v", got)
	}
	for err, want := range map[error]syscall.Errno{
		errors.New("unheard of"):                        syscall.EIO,
		context.Canceled:                                syscall.EINTR,
		fmt.Errorf("waiting: %w", context.Canceled):     syscall.EINTR,
		context.DeadlineExceeded:                        syscall.ETIMEDOUT,
		fmt.Errorf("lower file: %w", syscall.ENOSPC):    syscall.ENOSPC,
		fmt.Errorf("lower file: %w", syscall.ENOSYS):    syscall.EOPNOTSUPP,
		fmt.Errorf("lower file: %w", syscall.EREMOTEIO): syscall.EIO,
	} {
		if got := status(err); got != fuse.Status(want) {
			t.Errorf("%v: %v, want %v", err, got, want)
		}
	}
	if got := seekStatus(fmt.Errorf("extent: %w", blockdev.ErrRange)); got != fuse.Status(syscall.ENXIO) {
		t.Errorf("seeking past the end: %v", got)
	}
	if got := seekStatus(blockdev.ErrTimeout); got != fuse.Status(syscall.ETIMEDOUT) {
		t.Errorf("seeking, other errors: %v", got)
	}
}

// A kind that is added to blockdev must get a place in the table.
func TestStatus_TableIsComplete(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../blockdev/errors.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, decl := range file.Decls {
		gen, ok := decl.(*ast.GenDecl)
		if !ok || gen.Tok != token.VAR {
			continue
		}
		for _, spec := range gen.Specs {
			for _, name := range spec.(*ast.ValueSpec).Names {
				if !strings.HasPrefix(name.Name, "Err") {
					continue
				}
				found++
				if _, ok := kindErrno[name.Name]; !ok {
					t.Errorf("blockdev.%s has no errno in the table", name.Name)
				}
			}
		}
	}
	if found != len(kindErrno) {
		t.Errorf("blockdev has %d kinds, the table %d", found, len(kindErrno))
	}
}
