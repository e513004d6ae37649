package snapshot

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"sync"
)

// chunkRun is n chunks from first on.
type chunkRun struct {
	first Chunk
	n     uint64
}

func (r chunkRun) end() Chunk { return r.first + Chunk(r.n) }

// mergeRanges keeps writes to chunks of the COW device apart from the merge of
// the same chunks. While they are copied, writes go on and are noted: such chunks
// are copied again. For that, and until their exceptions are gone, the merge waits
// for the writes under way, and those that come later wait for the merge.
type mergeRanges struct {
	mu      sync.Mutex
	writes  []chunkRun    // under way, in no order; guarded by mu
	quiet   chan struct{} // closed when a write ends; nil while nobody waits; guarded by mu
	current *mergeBatch   // what is being merged; nil: nothing; guarded by mu
}

// mergeBatch is what is merged in one step.
type mergeBatch struct {
	runs    []chunkRun     // ascending
	written map[Chunk]bool // since the copy began; guarded by mu of the ranges
	shut    bool           // writes wait; guarded by mu of the ranges
	done    chan struct{}
	err     error // valid when done is closed
}

// overlaps tells whether any chunk of r is in the batch.
func (b *mergeBatch) overlaps(r chunkRun) bool {
	i := b.from(r)
	return i < len(b.runs) && b.runs[i].first < r.end()
}

// from is the first run that does not end in front of r.
func (b *mergeBatch) from(r chunkRun) int {
	return sort.Search(len(b.runs), func(i int) bool { return b.runs[i].end() > r.first })
}

// note remembers the chunks of r that are in the batch as written.
func (b *mergeBatch) note(r chunkRun) {
	for i := b.from(r); i < len(b.runs) && b.runs[i].first < r.end(); i++ {
		for c := max(r.first, b.runs[i].first); c < min(r.end(), b.runs[i].end()); c++ {
			b.written[c] = true
		}
	}
}

// enter begins a write to the chunks of r. It waits while they must not be
// written; the error of a merge that fails is that of who waits for it.
func (m *mergeRanges) enter(ctx context.Context, r chunkRun) error {
	for {
		m.mu.Lock()
		b := m.current
		if b == nil || !b.shut || !b.overlaps(r) {
			if b != nil {
				b.note(r)
			}
			m.writes = append(m.writes, r)
			m.mu.Unlock()
			return nil
		}
		m.mu.Unlock()
		select {
		case <-b.done:
			if b.err != nil {
				return b.err
			}
		case <-ctx.Done():
			return fmt.Errorf("waiting for the merge of a chunk: %w", ctx.Err())
		}
	}
}

// leave ends what enter began.
func (m *mergeRanges) leave(r chunkRun) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := slices.Index(m.writes, r)
	last := len(m.writes) - 1
	m.writes[i] = m.writes[last]
	m.writes = m.writes[:last]
	if m.quiet != nil {
		close(m.quiet)
		m.quiet = nil
	}
}

// begin marks the runs, which are in ascending order, as being merged. One batch
// at a time.
func (m *mergeRanges) begin(runs []chunkRun) *mergeBatch {
	b := &mergeBatch{runs: runs, written: make(map[Chunk]bool), done: make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range m.writes { // they may come after the copy
		b.note(w)
	}
	m.current = b
	return b
}

// shut keeps writes out of the batch, and returns, when none is under way, the
// chunks that were written since it began.
func (m *mergeRanges) shut(b *mergeBatch) map[Chunk]bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	b.shut = true
	for slices.ContainsFunc(m.writes, b.overlaps) {
		if m.quiet == nil {
			m.quiet = make(chan struct{})
		}
		ch := m.quiet
		m.mu.Unlock()
		<-ch
		m.mu.Lock()
	}
	return b.written
}

// end lets those go on who wait for the batch.
func (m *mergeRanges) end(b *mergeBatch, err error) {
	m.mu.Lock()
	m.current = nil
	m.mu.Unlock()
	b.err = err
	close(b.done)
}
