// Package stack puts mapper and targets together in the process of a test, over
// plain files: all of dmfuse but the mount and the daemon.
package stack

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/mapper"
	"github.com/dmfuse/dmfuse/mirror"
	"github.com/dmfuse/dmfuse/snapshot"
	"github.com/dmfuse/dmfuse/target"
	"github.com/dmfuse/dmfuse/target/basic"
)

// limit is how long a single request may take.
const limit = time.Minute

// Stack is a mapper with all targets.
type Stack struct {
	t      testing.TB
	M      *mapper.Manager
	closed bool
}

// New makes an empty one, which is closed after the test if it is not before.
func New(t testing.TB) *Stack {
	t.Helper()
	return newStack(t, mirror.Options{}, snapshot.Options{})
}

// NewMirrors is New with options for the mirrors.
func NewMirrors(t testing.TB, o mirror.Options) *Stack {
	t.Helper()
	return newStack(t, o, snapshot.Options{})
}

// NewSnapshots is New with options for the snapshots.
func NewSnapshots(t testing.TB, o snapshot.Options) *Stack {
	t.Helper()
	return newStack(t, mirror.Options{}, o)
}

func newStack(t testing.TB, o mirror.Options, so snapshot.Options) *Stack {
	t.Helper()
	pool := blockdev.NewPool(blockdev.PoolOptions{})
	m, err := mapper.New(mapper.Options{
		Types: target.NewSet(slices.Concat(basic.Types(), snapshot.NewGroup(so).Types(), mirror.Types(o))...),
		OpenLower: func(path string, write bool) (target.Lower, error) {
			h, err := pool.Open(path, write)
			if err != nil {
				return nil, err
			}
			return h, nil
		},
		Major: 253,
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &Stack{t: t, M: m}
	t.Cleanup(s.Close)
	return s
}

// Close shuts everything down in order.
func (s *Stack) Close() {
	s.t.Helper()
	if s.closed {
		return
	}
	s.closed = true
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := s.M.Close(ctx); err != nil {
		s.t.Errorf("close: %v", err)
	}
}

// Create makes a device with a table and resumes it.
func (s *Stack) Create(name, format string, args ...any) *mapper.Device {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	text := fmt.Sprintf(format, args...)
	lines, err := mapper.ParseTable(text, mapper.GrammarDmfuse)
	if err != nil {
		s.t.Fatalf("table %q: %v", text, err)
	}
	d, err := s.M.Create(name, "", -1)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := errors.Join(d.Load(ctx, lines, false), d.Resume(ctx, mapper.SuspendOptions{})); err != nil {
		s.t.Fatalf("%s: %q: %v", name, text, err)
	}
	return d
}

// Remove removes a device.
func (s *Stack) Remove(name string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if _, err := s.M.Remove(ctx, mapper.ByName(name), mapper.RemoveOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

// Write writes all of p.
func (s *Stack) Write(d *mapper.Device, p []byte, off int64) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if n, err := d.WriteAt(ctx, p, off, false); err != nil || n != len(p) {
		s.t.Fatalf("%s: write at %d: %d of %d bytes, %v", d.Name(), off, n, len(p), err)
	}
}

// Content reads the whole device.
func (s *Stack) Content(d *mapper.Device) []byte {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	p := make([]byte, d.Size())
	if n, err := d.ReadAt(ctx, p, 0); err != nil || n != len(p) {
		s.t.Fatalf("%s: read: %d of %d bytes, %v", d.Name(), n, len(p), err)
	}
	return p
}

// Status is the text of the first target.
func (s *Stack) Status(d *mapper.Device, form target.StatusForm) string {
	s.t.Helper()
	list := d.Status(form, false, false)
	if len(list) == 0 {
		s.t.Fatalf("%s: no target", d.Name())
	}
	return list[0].Params
}
