package mapper

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// lost stands for a target that a restart could not bring back. The device
// keeps its size and its table line, so that the table can be loaded again when
// the cause is removed; every request answers EIO with the reason.
type lost struct {
	args []string
	err  error
}

var _ target.Target = (*lost)(nil)

func (l *lost) Read(context.Context, []byte, int64) error        { return l.err }
func (l *lost) Write(context.Context, []byte, int64, bool) error { return l.err }
func (l *lost) Flush(context.Context) error                      { return l.err }
func (l *lost) Devices() []target.DeviceUse                      { return nil }
func (l *lost) Close() error                                     { return nil }

// Status is the line's own arguments, or the word that mirrors and caches of the
// kernel use for a device that cannot work.
func (l *lost) Status(form target.StatusForm) string {
	if form == target.StatusInfo {
		return "Fail"
	}
	words := make([]string, len(l.args))
	for i, a := range l.args {
		words[i] = target.Quote(a)
	}
	return strings.Join(words, " ")
}

// lostTable makes a table of lost targets.
func (d *Device) lostTable(lines []Line, readOnly bool, cause error) *table {
	t := &table{dev: d, readOnly: readOnly, lost: true}
	err := fmt.Errorf("%w: the device was not restored: %v", blockdev.ErrIO, cause)
	for _, l := range lines {
		t.segs = append(t.segs, segment{
			start: l.Start.Bytes(), end: (l.Start + l.Length).Bytes(), line: l,
			typ:    target.Type{Name: l.Type},
			target: &lost{args: l.Args, err: err},
		})
	}
	t.finish()
	return t
}

// Fail says that the device is of no use any more, and why: its file answers
// nothing but errors until the daemon is started anew.
func (d *Device) Fail(why error) {
	d.mu.Lock()
	d.problem = errors.Join(d.problem, why)
	d.mu.Unlock()
	d.events.raise()
	d.m.hub.global.raise()
	d.report(EventProblem, why.Error())
}
