package fstest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/fs"
)

// Op is one call of a device, as it came.
type Op struct {
	Kind  string // "read", "write", "flush", "zero", "extent"
	Off   int64
	Len   int64
	FUA   bool // write: durable before the answer
	Unmap bool // zero: the space may be given back
}

func (o Op) String() string {
	return fmt.Sprintf("%s %d+%d fua=%t unmap=%t", o.Kind, o.Off, o.Len, o.FUA, o.Unmap)
}

// page is the unit in which Memory knows holes.
const page = 4096

// Memory is a device in memory. It can be suspended: then calls wait inside it,
// as those of a suspended mapped device do, until Resume or their context ends.
type Memory struct {
	serial uint64

	mu       sync.Mutex
	name     string
	pages    map[int64][]byte // a page that is not there is a hole
	size     int64
	readOnly bool
	attr     fs.Attr
	opens    int
	writers  int // opens for write, never taken back
	changed  chan struct{}
	gate     chan struct{} // open when not suspended
	waiting  int
	fail     func(Op) error
	watch    func(Op)
	infos    int
}

var (
	_ fs.Device = (*Memory)(nil)
	_ fs.Prompt = (*Memory)(nil)
)

// NewMemory returns a device of size bytes, all of it holes.
func NewMemory(serial uint64, name string, size int64) *Memory {
	open := make(chan struct{})
	close(open)
	return &Memory{
		serial: serial, name: name, size: size, pages: make(map[int64][]byte),
		attr:    fs.Attr{Mode: 0600, Mtime: time.Unix(1_600_000_000, 0)},
		changed: make(chan struct{}), gate: open,
	}
}

// Name is the name of the file.
func (m *Memory) Name() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.name
}

// Rename gives the device another name.
func (m *Memory) Rename(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.name = name
}

// Serial is the number given to NewMemory.
func (m *Memory) Serial() uint64 { return m.serial }

// Size is the present size in bytes.
func (m *Memory) Size() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.size
}

// Resize changes the size; what is beyond it is lost.
func (m *Memory) Resize(size int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for p := range m.pages {
		if p*page >= size {
			delete(m.pages, p)
		}
	}
	m.size = size
}

// ReadOnly says whether writes are refused.
func (m *Memory) ReadOnly() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.readOnly
}

// SetReadOnly makes the device read-only, or writable again.
func (m *Memory) SetReadOnly(ro bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.readOnly = ro
}

// Open counts one user.
func (m *Memory) Open(write bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if write && m.readOnly {
		return fmt.Errorf("open %s: %w", m.name, blockdev.ErrReadOnly)
	}
	m.opens++
	if write {
		m.writers++
	}
	m.changedLocked()
	return nil
}

// Release takes one user back.
func (m *Memory) Release() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.opens--
	m.changedLocked()
}

// Opens is the number of users now.
func (m *Memory) Opens() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.opens
}

// Waiting is the number of calls that a suspended device holds up.
func (m *Memory) Waiting() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.waiting
}

// Await returns when cond holds; it is asked after each change of Opens or
// Waiting. It is false when ctx ended before.
func (m *Memory) Await(ctx context.Context, cond func() bool) bool {
	for {
		m.mu.Lock()
		changed := m.changed
		m.mu.Unlock()
		if cond() {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return cond()
		}
	}
}

func (m *Memory) changedLocked() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// Suspend holds all further calls up.
func (m *Memory) Suspend() {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.gate:
		m.gate = make(chan struct{})
	default:
	}
}

// Resume lets the calls go on.
func (m *Memory) Resume() {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.gate:
	default:
		close(m.gate)
	}
}

// Fail makes f decide which calls fail; nil: none.
func (m *Memory) Fail(f func(Op) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = f
}

// Watch calls f at the beginning of each call, from the goroutine of the call;
// nil: no more.
func (m *Memory) Watch(f func(Op)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.watch = f
}

// begin is what every call does first.
func (m *Memory) begin(ctx context.Context, op Op) error {
	m.mu.Lock()
	gate, fail, watch := m.gate, m.fail, m.watch
	m.mu.Unlock()
	if watch != nil {
		watch(op)
	}
	select {
	case <-gate:
	default:
		if err := m.wait(ctx, gate); err != nil {
			return err
		}
	}
	if fail != nil {
		return fail(op)
	}
	return nil
}

func (m *Memory) wait(ctx context.Context, gate <-chan struct{}) error {
	count := func(n int) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.waiting += n
		m.changedLocked()
	}
	count(1)
	defer count(-1)
	select {
	case <-gate:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", blockdev.ErrInterrupted, context.Cause(ctx))
	}
}

// ReadAt reads; holes are zeros.
func (m *Memory) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := m.begin(ctx, Op{Kind: "read", Off: off, Len: int64(len(p))}); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if off >= m.size {
		return 0, nil
	}
	p = p[:min(int64(len(p)), m.size-off)]
	m.eachLocked(off, int64(len(p)), func(data []byte, at, n int64, _ int64) {
		if data == nil {
			clear(p[at : at+n])
		} else {
			copy(p[at:at+n], data)
		}
	})
	return len(p), nil
}

// WriteAt writes.
func (m *Memory) WriteAt(ctx context.Context, p []byte, off int64, fua bool) (int, error) {
	if err := m.begin(ctx, Op{Kind: "write", Off: off, Len: int64(len(p)), FUA: fua}); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.readOnly:
		return 0, blockdev.ErrReadOnly
	case off >= m.size && len(p) > 0:
		return 0, blockdev.ErrNoSpace
	}
	p = p[:min(int64(len(p)), m.size-off)]
	m.eachLocked(off, int64(len(p)), func(data []byte, at, n, number int64) {
		if data == nil {
			full := make([]byte, page)
			m.pages[number] = full
			data = full[(off+at)%page:]
		}
		copy(data, p[at:at+n])
	})
	return len(p), nil
}

// eachLocked calls fn for the pages of a range: what is left of the page from
// there on (nil for a hole), the place in the range, the length, the number.
func (m *Memory) eachLocked(off, n int64, fn func(data []byte, at, n, number int64)) {
	for at := int64(0); at < n; {
		number, in := (off+at)/page, (off+at)%page
		k := min(page-in, n-at)
		var data []byte
		if full := m.pages[number]; full != nil {
			data = full[in:]
		}
		fn(data, at, k, number)
		at += k
	}
}

// Flush does nothing but being seen.
func (m *Memory) Flush(ctx context.Context) error { return m.begin(ctx, Op{Kind: "flush"}) }

// Zero zeroes a range; with unmap whole pages become holes.
func (m *Memory) Zero(ctx context.Context, off, n int64, unmap bool) error {
	if err := m.begin(ctx, Op{Kind: "zero", Off: off, Len: n, Unmap: unmap}); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if off < 0 || off+n > m.size {
		return blockdev.ErrRange
	}
	m.eachLocked(off, n, func(data []byte, at, k, number int64) {
		switch {
		case data == nil && !unmap:
			m.pages[number] = make([]byte, page)
		case data == nil:
		case k == page && unmap:
			delete(m.pages, number)
		default:
			clear(data[:k])
		}
	})
	return nil
}

// Extent tells holes page by page.
func (m *Memory) Extent(ctx context.Context, off int64) (int64, bool, error) {
	if err := m.begin(ctx, Op{Kind: "extent", Off: off}); err != nil {
		return 0, false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if off < 0 || off >= m.size {
		return 0, false, blockdev.ErrRange
	}
	return min(page-off%page, m.size-off), m.pages[off/page] == nil, nil
}

// Attr is what SetAttr gave.
func (m *Memory) Attr() fs.Attr {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.attr
}

// SetAttr keeps the attributes.
func (m *Memory) SetAttr(a fs.Attr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.attr = a
}

// InfoText names the device and the file, and how often it was asked, at length.
func (m *Memory) InfoText(kind string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.infos++
	return fmt.Sprintf("%s of %s, time %d\n", kind, m.name, m.infos)
}

// ReadNow reads if the device is not suspended and nobody watches or lets fail.
func (m *Memory) ReadNow(p []byte, off int64) (int, bool) {
	if !m.prompt() {
		return 0, false
	}
	n, err := m.ReadAt(ended(), p, off)
	return n, err == nil
}

// WriteNow writes likewise.
func (m *Memory) WriteNow(p []byte, off int64) (int, bool) {
	if !m.prompt() {
		return 0, false
	}
	n, err := m.WriteAt(ended(), p, off, false)
	return n, err == nil
}

// ended is a context with which nothing waits: the device may be suspended just now.
func ended() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func (m *Memory) prompt() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.gate:
		return m.fail == nil && m.watch == nil
	default:
		return false
	}
}
