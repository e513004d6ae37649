package blockdev

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
)

// memPage is the unit in which a [Mem] takes memory and knows its holes.
const memPage = 4096

// memSerial numbers the memory devices of this process, so that no two have
// the same [ID].
var memSerial atomic.Uint64

// Mem is a device in memory. Parts never written take no memory. It is durable
// at once: Flush does nothing.
type Mem struct {
	id ID

	mu     sync.RWMutex // guards the fields below; held shared by every request
	size   int64
	pages  []atomic.Pointer[page] // nil: a hole
	closed bool
}

// page is a piece of a Mem. Requests that overlap take turns on it.
type page struct {
	mu   sync.RWMutex
	data [memPage]byte
}

var (
	_ Identified = (*Mem)(nil)
	_ FUAWriter  = (*Mem)(nil)
	_ Zeroer     = (*Mem)(nil)
	_ Discarder  = (*Mem)(nil)
	_ Extenter   = (*Mem)(nil)
	_ Grower     = (*Mem)(nil)
	_ Prompt     = (*Mem)(nil)
)

// NewMem makes a device of size bytes that reads as zeros.
func NewMem(size int64) *Mem {
	m := &Mem{id: ID{Kind: IDMemory, A: memSerial.Add(1)}}
	if err := m.Resize(size); err != nil {
		panic(err)
	}
	return m
}

// NewMemBytes makes a device that holds a copy of content.
func NewMemBytes(content []byte) *Mem {
	m := NewMem(int64(len(content)))
	if _, err := m.WriteAt(content, 0); err != nil {
		panic(err)
	}
	return m
}

// ID is that of this device alone.
func (m *Mem) ID() ID { return m.id }

// Name is "memory:N".
func (m *Mem) Name() string { return fmt.Sprintf("memory:%d", m.id.A) }

// Size is the size in bytes.
func (m *Mem) Size() int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.size
}

// Grow makes the device at least size bytes long; what is new reads as zeros.
func (m *Mem) Grow(size int64) error {
	if size <= m.Size() {
		return nil
	}
	return m.Resize(size)
}

// Resize makes the device size bytes long, shorter too, as a truncated file.
func (m *Mem) Resize(size int64) error {
	if size < 0 {
		return fmt.Errorf("%w: size %d", ErrInvalid, size)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrClosed
	}
	n := int((size + memPage - 1) / memPage)
	pages := make([]atomic.Pointer[page], n)
	for i := range min(n, len(m.pages)) {
		pages[i].Store(m.pages[i].Load())
	}
	m.pages = pages
	if size < m.size && size%memPage != 0 {
		if pg := pages[n-1].Load(); pg != nil {
			clear(pg.data[size%memPage:])
		}
	}
	m.size = size
	return nil
}

// begin checks a request and takes m.mu shared; the caller releases it.
func (m *Mem) begin(op string, off, n int64) error {
	m.mu.RLock()
	var err error
	switch {
	case m.closed:
		err = ErrClosed
	case off < 0 || n < 0 || off > m.size || n > m.size-off:
		err = ErrRange
	default:
		return nil
	}
	m.mu.RUnlock()
	return &Error{Op: op, Device: m.Name(), Offset: off, Length: n, Err: err}
}

// ReadAt reads as [Device].
func (m *Mem) ReadAt(p []byte, off int64) (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed || off < 0 {
		err := ErrClosed
		if !m.closed {
			err = ErrRange
		}
		return 0, &Error{Op: "read", Device: m.Name(), Offset: off, Length: int64(len(p)), Err: err}
	}
	if len(p) == 0 {
		return 0, nil
	}
	if off >= m.size {
		return 0, io.EOF
	}
	want := len(p)
	p = p[:min(int64(want), m.size-off)]
	for done := 0; done < len(p); {
		i, at := (off+int64(done))/memPage, int((off+int64(done))%memPage)
		k := min(len(p)-done, memPage-at)
		if pg := m.pages[i].Load(); pg != nil {
			pg.mu.RLock()
			copy(p[done:done+k], pg.data[at:])
			pg.mu.RUnlock()
		} else {
			clear(p[done : done+k])
		}
		done += k
	}
	if len(p) < want {
		return len(p), io.EOF
	}
	return want, nil
}

// WriteAt writes as [Device].
func (m *Mem) WriteAt(p []byte, off int64) (int, error) {
	if err := m.begin("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	defer m.mu.RUnlock()
	for done := 0; done < len(p); {
		i, at := (off+int64(done))/memPage, int((off+int64(done))%memPage)
		k := min(len(p)-done, memPage-at)
		pg := m.page(i)
		pg.mu.Lock()
		copy(pg.data[at:], p[done:done+k])
		pg.mu.Unlock()
		done += k
	}
	return len(p), nil
}

// page returns page i, which is made if there is none.
func (m *Mem) page(i int64) *page {
	for {
		if pg := m.pages[i].Load(); pg != nil {
			return pg
		}
		m.pages[i].CompareAndSwap(nil, new(page))
	}
}

// WriteFUA is WriteAt: memory is as durable as it gets.
func (m *Mem) WriteFUA(p []byte, off int64) (int, error) { return m.WriteAt(p, off) }

// Flush does nothing.
func (m *Mem) Flush() error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return &Error{Op: "flush", Device: m.Name(), Err: ErrClosed}
	}
	return nil
}

// Zero zeroes; with unmap it gives back whole pages of 4 KiB.
func (m *Mem) Zero(off, n int64, unmap bool) error {
	if err := m.begin("zero", off, n); err != nil {
		return err
	}
	defer m.mu.RUnlock()
	for n > 0 {
		i, at := off/memPage, off%memPage
		k := min(n, memPage-at)
		pg := m.pages[i].Load()
		switch {
		case pg == nil && !unmap:
			m.page(i)
		case pg == nil:
		case unmap && (k == memPage || off+k == m.size && at == 0):
			m.pages[i].CompareAndSwap(pg, nil)
		default:
			pg.mu.Lock()
			clear(pg.data[at : at+k])
			pg.mu.Unlock()
		}
		off += k
		n -= k
	}
	return nil
}

// Discard is Zero with unmap.
func (m *Mem) Discard(off, n int64) error { return m.Zero(off, n, true) }

// Extent tells holes in units of 4 KiB.
func (m *Mem) Extent(off int64) (length int64, hole bool, err error) {
	if err := m.begin("extent", off, 1); err != nil {
		return 0, false, err
	}
	defer m.mu.RUnlock()
	first := off / memPage
	hole = m.pages[first].Load() == nil
	last := first + 1
	for last < int64(len(m.pages)) && (m.pages[last].Load() == nil) == hole {
		last++
	}
	return min(last*memPage, m.size) - off, hole, nil
}

// Close frees the memory.
func (m *Mem) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrClosed
	}
	m.closed, m.pages = true, nil
	return nil
}
