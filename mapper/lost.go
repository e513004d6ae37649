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
	args   []string
	err    error
	broken bool
	memory string
}

var (
	_ target.Target  = (*lost)(nil)
	_ target.Breaker = (*lost)(nil)

	_ target.Rememberer = (*lost)(nil)
)

func (l *lost) Read(context.Context, []byte, int64) error        { return l.err }
func (l *lost) Write(context.Context, []byte, int64, bool) error { return l.err }
func (l *lost) Flush(context.Context) error                      { return l.err }
func (l *lost) Devices() []target.DeviceUse                      { return nil }
func (l *lost) Close() error                                     { return nil }

// Broken is what the target was, or has become because it is not there.
func (l *lost) Broken() bool { return l.broken }

// Remember is what the target did.
func (l *lost) Remember() string { return l.memory }

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

// lostTable makes a table of lost targets. spoiled says that nothing was tried
// for them, so that nothing is noted on their devices.
func (d *Device) lostTable(lines []Line, from *recordTable, spoiled bool, cause error) *table {
	t := &table{dev: d, readOnly: from.ReadOnly, lost: true}
	err := fmt.Errorf("%w: the device was not restored: %v", blockdev.ErrIO, cause)
	for i, l := range lines {
		typ, _ := d.m.types.Lookup(l.Type)
		t.segs = append(t.segs, segment{
			start: l.Start.Bytes(), end: (l.Start + l.Length).Bytes(), line: l,
			typ:    target.Type{Name: l.Type},
			target: &lost{args: l.Args, err: err, broken: from.isBroken(i) || spoiled && typ.Fragile, memory: from.memory(i)},
		})
	}
	t.finish()
	return t
}

// Fail says that the device is of no use any more, and why: its file answers
// nothing but errors until the daemon is started anew, or it is given another
// table after a restart.
func (d *Device) Fail(why error) {
	d.mu.Lock()
	d.problem = errors.Join(d.problem, why)
	d.failed = why
	d.mu.Unlock()
	d.record()
	d.events.raise()
	d.m.hub.global.raise()
	d.report(EventProblem, why.Error())
}
