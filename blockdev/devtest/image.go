package devtest

import (
	"io"
	"sync"

	"github.com/dmfuse/dmfuse/blockdev"
)

const imagePage = 4096

// Image is a device in memory whose copies share what is equal: a copy costs
// one pointer per 4 KiB, and a write to either of them one page.
type Image struct {
	id   blockdev.ID
	name string

	mu     sync.RWMutex
	size   int64
	pages  []*[imagePage]byte // nil: zeros
	own    []bool             // the page is of this image alone and may be changed
	closed bool
}

var (
	_ blockdev.Identified = (*Image)(nil)
	_ blockdev.FUAWriter  = (*Image)(nil)
	_ blockdev.Zeroer     = (*Image)(nil)
	_ blockdev.Discarder  = (*Image)(nil)
	_ blockdev.Extenter   = (*Image)(nil)
)

// NewImage makes an image of size bytes that reads as zeros.
func NewImage(name string, size int64) *Image {
	n := (size + imagePage - 1) / imagePage
	return &Image{
		id: blockdev.NewMem(0).ID(), name: name, size: size,
		pages: make([]*[imagePage]byte, n), own: make([]bool, n),
	}
}

// CopyImage makes an image with the content of dev; that of another image is
// shared with it.
func CopyImage(name string, dev blockdev.Device) (*Image, error) {
	if m, ok := dev.(*Image); ok {
		c := m.Share()
		c.id, c.name = blockdev.NewMem(0).ID(), name
		return c, nil
	}
	m := NewImage(name, dev.Size())
	for off := int64(0); off < m.size; {
		n, hole, err := blockdev.Extent(dev, off)
		if err != nil {
			return nil, err
		}
		if !hole {
			buf := make([]byte, min(n, 1<<20))
			n = int64(len(buf))
			if k, err := dev.ReadAt(buf, off); k < len(buf) {
				return nil, err
			}
			m.put(buf, off)
		}
		off += n
	}
	return m, nil
}

// Share makes a copy, which has the same identity.
func (m *Image) Share() *Image {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := &Image{id: m.id, name: m.name, size: m.size, own: make([]bool, len(m.pages))}
	c.pages = append(c.pages, m.pages...)
	clear(m.own)
	return c
}

// ID is that of this image and of those shared from it.
func (m *Image) ID() blockdev.ID { return m.id }

// Name is the name it was made with.
func (m *Image) Name() string { return m.name }

// Size is the size in bytes.
func (m *Image) Size() int64 { return m.size }

func (m *Image) check(op string, off, n int64) error {
	err := blockdev.ErrRange
	switch {
	case m.closed:
		err = blockdev.ErrClosed
	case off >= 0 && n >= 0 && off <= m.size && n <= m.size-off:
		return nil
	}
	return &blockdev.Error{Op: op, Device: m.name, Offset: off, Length: n, Err: err}
}

// ReadAt reads as [blockdev.Device].
func (m *Image) ReadAt(p []byte, off int64) (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed || off < 0 {
		return 0, m.check("read", off, int64(len(p)))
	}
	n := min(int64(len(p)), max(m.size-off, 0))
	m.get(p[:n], off)
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// get reads within the size; the caller holds m.mu.
func (m *Image) get(p []byte, off int64) {
	for len(p) > 0 {
		i, at := off/imagePage, off%imagePage
		k := min(int64(len(p)), imagePage-at)
		if pg := m.pages[i]; pg != nil {
			copy(p[:k], pg[at:])
		} else {
			clear(p[:k])
		}
		p, off = p[k:], off+k
	}
}

// put writes within the size; the caller holds m.mu or is
// alone.
func (m *Image) put(p []byte, off int64) {
	for len(p) > 0 {
		at := off % imagePage
		k := min(int64(len(p)), imagePage-at)
		copy(m.page(off / imagePage)[at:], p[:k])
		p, off = p[k:], off+k
	}
}

// page returns page i of this image alone.
func (m *Image) page(i int64) *[imagePage]byte {
	if !m.own[i] {
		pg := new([imagePage]byte)
		if m.pages[i] != nil {
			*pg = *m.pages[i]
		}
		m.pages[i], m.own[i] = pg, true
	}
	return m.pages[i]
}

// putZeros zeroes within the size; whole pages become holes.
func (m *Image) putZeros(off, n int64) {
	for n > 0 {
		i, at := off/imagePage, off%imagePage
		k := min(n, imagePage-at)
		switch {
		case m.pages[i] == nil:
		case k == imagePage:
			m.pages[i], m.own[i] = nil, false
		default:
			clear(m.page(i)[at : at+k])
		}
		off, n = off+k, n-k
	}
}

// WriteAt writes as [blockdev.Device].
func (m *Image) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	m.put(p, off)
	return len(p), nil
}

// WriteFUA is WriteAt.
func (m *Image) WriteFUA(p []byte, off int64) (int, error) { return m.WriteAt(p, off) }

// Flush does nothing.
func (m *Image) Flush() error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.check("flush", 0, 0)
}

// Zero zeroes.
func (m *Image) Zero(off, n int64, _ bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check("zero", off, n); err != nil {
		return err
	}
	m.putZeros(off, n)
	return nil
}

// Discard zeroes.
func (m *Image) Discard(off, n int64) error { return m.Zero(off, n, true) }

// Extent tells holes of whole pages.
func (m *Image) Extent(off int64) (int64, bool, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if err := m.check("extent", off, 1); err != nil {
		return 0, false, err
	}
	first := off / imagePage
	hole := m.pages[first] == nil
	last := first + 1
	for last < int64(len(m.pages)) && (m.pages[last] == nil) == hole {
		last++
	}
	return min(last*imagePage, m.size) - off, hole, nil
}

// Close ends the use of this image; shared ones stay.
func (m *Image) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return blockdev.ErrClosed
	}
	m.closed = true
	return nil
}
