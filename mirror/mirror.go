package mirror

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/kcopyd"
	"github.com/dmfuse/dmfuse/target"
	"github.com/sirupsen/logrus"
)

// Options are fixed when the type is made. The zero value works.
type Options struct {
	// Log takes what no table is concerned with; nil: nothing is logged.
	Log logrus.FieldLogger
	// CopyPages is the budget of each recovery in pages of 4 KiB; 0: 512.
	CopyPages int
	// Parallel is how many copies a recovery has under way; 0: 4.
	Parallel int
	// ClearDelay is how long a region is idle before its bit is cleared; 0:
	// 250 ms.
	ClearDelay time.Duration
	// Policies are those of a new target; the zero value: the defaults.
	Policies Policies
	// Notes are where mirrors with a core log keep for the next daemon what is in
	// sync; the zero value: nowhere.
	Notes Notes
	// group links the mirrors made with these options; nil: Types makes one.
	group *group
	// steps are those of the sidecars; nil: of the machine. For tests only.
	steps steps
	// Hooks break the rules of the package on purpose. For tests only.
	Hooks Hooks
}

// Hooks take single barriers away, so that a test can prove that it would
// notice. The zero value changes nothing.
type Hooks struct {
	NoLogFlush      bool // dirty bits are written and not flushed
	NoLogWait       bool // legs are written before the dirty bit is
	NoLegFlush      bool // bits are cleared without a flush of the legs
	NoRecoveryFlush bool // likewise, after a recovery only
	NoClearCheck    bool // a bit is cleared although a write came during the flush
	NoNosync        bool // a write that failed on a leg leaves the region in sync

	// Those of the note of regions.
	NoNoteDirty bool // legs are written and the note has the region clean
	NoNoteMarks bool // a note counts whatever the marks on the legs
	NoNoteTime  bool // a note counts whenever the legs were written to
	NoNoteFlush bool // a flush that did not end makes nothing doubtful

	// Those of the leg record.
	NoRecordSync    bool // a copy is renamed before it is durable
	NoRecordDirSync bool // a copy is renamed, and the folder not synced
	NoDropRecord    bool // a leg is dropped in memory only
	NoDropWait      bool // a write is answered before the drop is durable
	NoLostRecord    bool // the record does not say that the log is lost
	NoFillLog       bool // a leg is filled without its area being out of sync in the log
	NoFillFlush     bool // a leg counts as filled before it was flushed
	NoStaleCheck    bool // at assembly a leg counts whatever the generation of its record
}

// Types lists the target types of this package.
func Types(o Options) []target.Type {
	if o.group == nil {
		o.group = newGroup()
	}
	return []target.Type{{
		Name: "mirror", Version: [3]uint32{1, 15, 0}, Usage: usage,
		New: func(env *target.Env, args []string) (target.Target, error) { return o.newMirror(env, args) },
	}}
}

const (
	defaultCopyPages  = 512 // what the copies under way need; more does not fit the cache of a processor
	defaultParallel   = 4
	defaultClearDelay = 250 * time.Millisecond
)

var (
	_ target.Target           = (*mirror)(nil)
	_ target.Suspender        = (*mirror)(nil)
	_ target.PresuspendUndoer = (*mirror)(nil)
	_ target.Discarder        = (*mirror)(nil)
	_ target.Zeroer           = (*mirror)(nil)
	_ target.Extenter         = (*mirror)(nil)
	_ target.Messager         = (*mirror)(nil)
	_ target.Breaker          = (*mirror)(nil)
	_ target.Rememberer       = (*mirror)(nil)
	_ Reporter                = (*mirror)(nil)
)

// mirror is the target.
type mirror struct {
	o      Options
	env    *target.Env
	params params
	start  int64 // first byte of the segment on the mapped device
	length int64 // bytes
	region int64 // bytes

	legs     []*leg
	def      atomic.Int32 // the default leg; changed with mu held
	turn     atomic.Uint32
	writes   atomic.Int64 // under way on legs
	differ   atomic.Bool  // differs is not empty
	balanced atomic.Bool  // reads are spread
	dirty    *dirtyLog
	copier   *kcopyd.Client
	throttle *kcopyd.Throttle

	mu           sync.Mutex
	policies     Policies
	regions      map[Region]*entry // those with something going on
	differs      map[Region]bool   // count as in sync and are not: the kernel's rule without handle_errors
	idle         []Region          // to be cleared, in order; an entry may have become busy again
	inSync       bool              // the kernel's flag: no write failed since the mirror was in sync
	legFailure   bool              // some leg has a mark
	logFailure   bool              // the log failed before a write: sticky
	flushFailure bool              // a flush failed: what is written falls out of sync
	suspended    bool
	noflush      bool // how
	held         map[*hold]struct{}
	released     chan struct{} // closed when held writes are to look again
	redo         uint64        // how often they were to be done again
	rec          recovery
	work         work
	keepDirty    bool // a resync begins: no bit is set to clean
	noted        bool // the note of regions was begun
	cold         freezes

	marks      sync.Mutex // one who records them at a time; taken before mu
	savedMarks string     // guarded by marks, but for the time before the first resume
	keep       *recorded  // nil without the feature leg_record
	scrub      *scrub     // the last one, nil if there was none

	loops *loops // nil while suspended
}

// newMirror makes the target in the kernel's order of steps: log, legs,
// features (kernel: mirror_ctr). The log is read at resume.
func (o Options) newMirror(env *target.Env, args []string) (target.Target, error) {
	p, err := parseParams(args, env.Length)
	if err != nil {
		return nil, err
	}
	m := &mirror{
		o: o.withDefaults(), env: env, params: p,
		start: env.Start.Bytes(), length: env.Length.Bytes(), region: p.region.Bytes(),
		regions:  make(map[Region]*entry),
		differs:  make(map[Region]bool),
		held:     make(map[*hold]struct{}),
		released: make(chan struct{}),
		// With nosync the kernel notices before the table is live that all is in
		// sync: there is no event.
		inSync:    word(env, p) == syncNone,
		suspended: true,
	}
	m.dirty = newLog(Region((uint64(env.Length)+uint64(p.region)-1)/uint64(p.region)), word(env, p))
	m.dirty.hooks = o.Hooks
	if !p.disk {
		m.dirty.note = makeRegionNote(nil, noteID{}, m.dirty.n)
	}
	if err := m.open(); err != nil {
		return nil, err
	}
	if err := m.restoreMarks(); err != nil {
		return nil, err
	}
	m.throttle = kcopyd.NewThrottle(100)
	m.setPolicies(m.o.Policies.orDefault(p))
	m.restoreScrub()
	m.copier, err = kcopyd.New(kcopyd.Options{Pages: m.o.CopyPages, Throttle: m.throttle})
	return m, err
}

// word is the last argument of the log, as far as it counts: when a killed
// daemon comes back the legs may differ where writes were under way, whatever
// the table said when the mirror was made. The log on a device knows where;
// without one all is copied (promise 9).
func word(env *target.Env, p params) syncWord {
	if env.Restoring {
		return syncDefault
	}
	return p.word
}

func (o Options) withDefaults() Options {
	if o.CopyPages == 0 {
		o.CopyPages = defaultCopyPages
	}
	if o.Parallel == 0 {
		o.Parallel = defaultParallel
	}
	if o.ClearDelay == 0 {
		o.ClearDelay = defaultClearDelay
	}
	return o
}

// open opens the log device, then the legs. Whatever is wrong with the log
// device is an invalid argument (kernel: create_dirty_log).
func (m *mirror) open() error {
	if m.params.disk {
		dev, err := m.env.Open(m.params.log, m.env.Mode())
		if err == nil {
			err = m.dirty.openDisk(dev, m.env.Event, m.env.ReadOnly)
		}
		if err != nil {
			return &target.ArgError{Index: 3, Text: m.params.log, Want: fmt.Sprintf("a log device (%v)", err)}
		}
	}
	missing := map[int]error{}
	for i, p := range m.params.legs {
		dev, err := m.env.Open(p.dev, m.env.Mode())
		if err == nil && m.params.legRecord && p.offset.Bytes()+m.length > dev.Size() {
			err = fmt.Errorf("%w: leg %s has %d bytes, needed are %d", blockdev.ErrInvalid, p.dev, dev.Size(), p.offset.Bytes()+m.length)
		}
		if err != nil && !m.params.legRecord {
			return err
		}
		if err != nil { // the record may say that it is dropped
			missing[i] = err
			dev = absentLeg{p.dev, err}
		}
		if end := p.offset + m.env.Length; end > blockdev.MaxSector {
			return &target.ArgError{Want: fmt.Sprintf("leg %s ends at sector %d, beyond all offsets", p.dev, uint64(end))}
		}
		m.legs = append(m.legs, &leg{dev: dev, offset: p.offset.Bytes()})
	}
	if m.params.legRecord {
		return m.openRecord(missing)
	}
	return nil
}

// log is the log for people.
func (m *mirror) log() logrus.FieldLogger {
	if m.env.Log != nil {
		return m.env.Log
	}
	if m.o.Log != nil {
		return m.o.Log
	}
	l := logrus.New()
	l.SetLevel(logrus.PanicLevel)
	return l
}

// Devices lists the log, then the legs.
func (m *mirror) Devices() []target.DeviceUse {
	var list []target.DeviceUse
	if d := m.dirty.dev; d != nil {
		list = append(list, target.DeviceUse{Lower: d, Area: blockdev.Range{Count: blockdev.SectorsIn(int64(len(m.dirty.image)))}})
	}
	for i, l := range m.legs {
		if _, absent := l.dev.(absentLeg); absent {
			continue
		}
		list = append(list, target.DeviceUse{Lower: l.dev, Area: blockdev.Range{Start: m.params.legs[i].offset, Count: m.env.Length}})
	}
	return list
}

// Close ends the target, also one that was not suspended.
func (m *mirror) Close() error {
	m.mu.Lock()
	m.suspendLocked(false)
	m.mu.Unlock()
	m.stopLoops()
	m.o.group.leave(m)
	err := m.copier.Close()
	m.dropNote()
	return err
}
