package mapper

import (
	"io"
	"path/filepath"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
	"github.com/sirupsen/logrus"
)

// Options is what a [Manager] is made from. The zero value of every field but
// Types has a documented meaning.
type Options struct {
	// Types are the target types that tables may name. Required.
	Types *target.Set

	// Pool opens files and block devices. Nil: OpenLower and OpenNumber do.
	Pool *blockdev.Pool

	// OpenLower opens a file or block device by path, OpenNumber a block device
	// by its number. Nil: Pool does. Tests put other devices here.
	OpenLower  func(path string, write bool) (target.Lower, error)
	OpenNumber func(major, minor uint32, write bool) (target.Lower, error)

	// Guard watches a file that must not change and calls broken when a
	// foreign writer opens it. Nil: that of Pool, or not available.
	Guard func(path string, broken func(blockdev.ID)) (release func(), err error)

	// Log takes what a person should know. Nil: nothing is logged.
	Log logrus.FieldLogger

	// Major is the major number printed for mapped devices. 0: the one kept in
	// StateDir for this boot, else the highest block major below 255 that
	// /proc/devices does not list.
	Major int

	// MountDir is where the devices are visible as files: a path directly
	// below it in a table is the name of a device. Empty: no such paths.
	MountDir string

	// StateDir holds the records that a restart is made from (promise 9).
	// Empty: nothing is kept.
	StateDir string

	// Opens is how often the file of each device is open, by serial number, for
	// users who go on with their files across a restart. Nil: whoever had a file
	// open was cut off.
	Opens map[uint64]int

	// Restoring is told which device a restart begins with. An error says that it
	// is to be left alone: it exists and answers EIO, and nothing of it is opened.
	// Nil: nobody asks.
	Restoring func(serial uint64, name string) error

	// KeepFailed says that a device that failed for good ([Device.Fail]) does so
	// after the restart as well.
	KeepFailed bool

	// Attr is the owner and mode that a new device starts with. A Mode of 0
	// is 0600.
	Attr Attr

	// ReleaseWait is how long Remove waits for the late release of a file that
	// is closed already. 0: 250 ms. Negative: not at all.
	ReleaseWait time.Duration

	// Host is where facts about this machine are read. The zero value is the
	// real one; tests set their own.
	Host Host

	// now is the clock of times shown to people.
	now func() time.Time
}

// defaults fills in what was left out.
func (o *Options) defaults() {
	if o.Log == nil {
		l := logrus.New()
		l.SetOutput(io.Discard)
		o.Log = l
	}
	if o.Pool != nil {
		pool := o.Pool
		if o.OpenLower == nil {
			o.OpenLower = func(path string, write bool) (target.Lower, error) { return opened(pool.Open(path, write)) }
		}
		if o.Guard == nil {
			o.Guard = pool.Guard
		}
		if o.OpenNumber == nil {
			o.OpenNumber = func(major, minor uint32, write bool) (target.Lower, error) {
				return opened(pool.OpenNumber(major, minor, write))
			}
		}
	}
	if o.ReleaseWait == 0 {
		o.ReleaseWait = 250 * time.Millisecond
	}
	if o.now == nil {
		o.now = time.Now
	}
	if o.MountDir != "" {
		o.MountDir = filepath.Clean(o.MountDir)
	}
	o.Host.defaults()
}

// opened keeps a nil handle from becoming a device that is not nil.
func opened(h *blockdev.Handle, err error) (target.Lower, error) {
	if err != nil {
		return nil, err
	}
	return h, nil
}
