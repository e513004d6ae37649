// Package model is what a device must hold: for each sector the seed it was
// last written with. Content is such that it tells seed and place by itself, so
// a sector that went astray is seen for what it is.
//
// A write that was not answered, because the daemon was killed under it, may
// have happened or not, sector by sector; everything answered must be there.
package model

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// SectorSize in bytes.
const SectorSize = 512

// Model is the content of one device. It may be used concurrently as long as
// writes that overlap are kept apart by the caller.
type Model struct {
	mu    sync.Mutex
	seeds []uint64           // by sector; 0 is zeros
	maybe map[int64][]uint64 // seeds of writes begun and not answered
}

// New is a device of so many sectors, written throughout with seed (0: zeros).
func New(sectors int64, seed uint64) *Model {
	m := &Model{seeds: make([]uint64, sectors), maybe: map[int64][]uint64{}}
	for i := range m.seeds {
		m.seeds[i] = seed
	}
	return m
}

// Sectors is the size.
func (m *Model) Sectors() int64 { return int64(len(m.seeds)) }

// Clone is the model of a view taken now. No write may be under way.
func (m *Model) Clone() *Model {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := &Model{seeds: slices.Clone(m.seeds), maybe: make(map[int64][]uint64, len(m.maybe))}
	for s, list := range m.maybe {
		c.maybe[s] = slices.Clone(list)
	}
	return c
}

// Begin notes a write that is about to be sent.
func (m *Model) Begin(seed uint64, start, count int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for s := start; s < start+count; s++ {
		m.maybe[s] = append(m.maybe[s], seed)
	}
}

// Done notes that the write was answered with success: it must be there.
func (m *Model) Done(seed uint64, start, count int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for s := start; s < start+count; s++ {
		m.seeds[s] = seed
		// Earlier writes of this sector that were never answered are covered
		// by this one.
		delete(m.maybe, s)
	}
}

// Write is a write that was answered.
func (m *Model) Write(seed uint64, start, count int64) {
	m.Begin(seed, start, count)
	m.Done(seed, start, count)
}

// Settle takes content as it is found, which Check has accepted: what was
// undecided is decided now.
func (m *Model) Settle(content []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for s := range m.maybe {
		if seed, ok := SeedOf(content[s*SectorSize:(s+1)*SectorSize], s); ok {
			m.seeds[s] = seed
		}
	}
	clear(m.maybe)
}

// Seed is what sector s was last written with.
func (m *Model) Seed(s int64) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.seeds[s]
}

// Bytes is the content where nothing is undecided.
func (m *Model) Bytes() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := make([]byte, len(m.seeds)*SectorSize)
	for s, seed := range m.seeds {
		Fill(b[s*SectorSize:(s+1)*SectorSize], seed, int64(s))
	}
	return b
}

// Check compares content that begins at sector start, and names the first
// sectors that hold what they must not.
func (m *Model) Check(content []byte, start int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var wrong []string
	total := 0
	for i := 0; i < len(content); i += SectorSize {
		s := start + int64(i)/SectorSize
		got, ok := SeedOf(content[i:i+SectorSize], s)
		if ok && (got == m.seeds[s] || slices.Contains(m.maybe[s], got)) {
			continue
		}
		total++
		if len(wrong) < 8 {
			what := fmt.Sprintf("seed %d", got)
			if !ok {
				what = describe(content[i : i+SectorSize])
			}
			wrong = append(wrong, fmt.Sprintf("sector %d holds %s, want seed %d or one of %v", s, what, m.seeds[s], m.maybe[s]))
		}
	}
	if total == 0 {
		return nil
	}
	return fmt.Errorf("%d sectors are wrong: %s", total, strings.Join(wrong, "; "))
}

// Fill writes the pattern of seed as it stands at sector first over b; seed 0
// is zeros.
func Fill(b []byte, seed uint64, first int64) {
	if seed == 0 {
		clear(b)
		return
	}
	for i := 0; i+8 <= len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], seed<<40|uint64(first+int64(i)/SectorSize))
	}
}

// Pattern is count sectors of seed from sector start on.
func Pattern(seed uint64, start, count int64) []byte {
	b := make([]byte, count*SectorSize)
	Fill(b, seed, start)
	return b
}

// SeedOf tells the seed of a sector's content; not ok where it is no pattern,
// is torn, or belongs to another sector.
func SeedOf(b []byte, sector int64) (seed uint64, ok bool) {
	first := binary.LittleEndian.Uint64(b)
	for i := 8; i < len(b); i += 8 {
		if binary.LittleEndian.Uint64(b[i:]) != first {
			return 0, false
		}
	}
	if first == 0 {
		return 0, true
	}
	return first >> 40, first&(1<<40-1) == uint64(sector)
}

// describe says what a sector is that must not be there.
func describe(b []byte) string {
	first, last := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[len(b)-8:])
	one := func(v uint64) string { return fmt.Sprintf("seed %d of sector %d", v>>40, v&(1<<40-1)) }
	if first == last {
		return one(first)
	}
	return one(first) + " and then " + one(last)
}
