package mapper

import (
	"context"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// Device is one mapped device.
type Device struct{}

// SuspendOptions are the flags of suspend and resume.
type SuspendOptions struct {
	NoFlush  bool // targets may give unfinished I/O back instead of finishing it
	NoLockFS bool // do not flush before
}

func (d *Device) Load(ctx context.Context, lines []Line, readOnly bool) error {
	panic("not written yet")
}
func (d *Device) Clear() error                                        { panic("not written yet") }
func (d *Device) Suspend(ctx context.Context, o SuspendOptions) error { panic("not written yet") }
func (d *Device) Resume(ctx context.Context, o SuspendOptions) error  { panic("not written yet") }
func (d *Device) Info(inactive bool) Info                             { panic("not written yet") }
func (d *Device) Status(form target.StatusForm, inactive, noflush bool) []TargetStatus {
	panic("not written yet")
}
func (d *Device) Deps(inactive bool) []Dep { panic("not written yet") }
func (d *Device) Message(ctx context.Context, sector blockdev.Sector, words []string) (string, error) {
	panic("not written yet")
}
func (d *Device) EventNr() uint32                                          { panic("not written yet") }
func (d *Device) WaitEvent(ctx context.Context, nr uint32) (uint32, error) { panic("not written yet") }

func (d *Device) Name() string          { panic("not written yet") }
func (d *Device) UUID() string          { panic("not written yet") }
func (d *Device) Serial() uint64        { panic("not written yet") }
func (d *Device) Minor() int            { panic("not written yet") }
func (d *Device) Size() int64           { panic("not written yet") }
func (d *Device) ReadOnly() bool        { panic("not written yet") }
func (d *Device) Open(write bool) error { panic("not written yet") }
func (d *Device) Release()              { panic("not written yet") }
func (d *Device) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	panic("not written yet")
}
func (d *Device) WriteAt(ctx context.Context, p []byte, off int64, fua bool) (int, error) {
	panic("not written yet")
}
func (d *Device) Flush(ctx context.Context) error { panic("not written yet") }
func (d *Device) Zero(ctx context.Context, off, n int64, unmap bool) error {
	panic("not written yet")
}
func (d *Device) Discard(ctx context.Context, off, n int64) error { panic("not written yet") }
func (d *Device) Extent(ctx context.Context, off int64) (int64, bool, error) {
	panic("not written yet")
}
func (d *Device) Attr() Attr                  { panic("not written yet") }
func (d *Device) SetAttr(a Attr)              { panic("not written yet") }
func (d *Device) InfoText(kind string) string { panic("not written yet") }
