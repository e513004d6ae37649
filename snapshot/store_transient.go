package snapshot

import "github.com/dmfuse/dmfuse/blockdev"

var _ store = (*transient)(nil)

// transient is the store N: chunks are handed out from the start of the COW
// device and everything is forgotten when the target ends (kernel:
// dm-snap-transient.c). A keeper's next worker finds it in a file
// (transientfile.go).
type transient struct {
	layout
	next Chunk      // guarded by mu of the snapshot
	kept *tableFile // or nil
}

func (t *transient) prepare(size int64) (Chunk, error) {
	if t.next >= t.chunksIn(size) {
		return 0, ErrFull
	}
	t.next++
	return t.next - 1, nil
}

func (t *transient) bounds() (used, free, need int64) {
	return t.offset(t.next), t.offset(t.next), t.offset(t.next + 1)
}

func (t *transient) commit(_ blockdev.Device, es []exception) (int, error) {
	if t.kept != nil {
		if err := t.kept.record(es); err != nil {
			return 0, err
		}
	}
	return len(es), nil
}

func (t *transient) invalidate(blockdev.Device) error {
	if t.kept == nil {
		return nil
	}
	return t.kept.drop()
}

func (t *transient) fresh(Chunk, Chunk) bool { return false }
func (t *transient) forget(int)              {}

func (t *transient) used() (all, metadata uint64) { return uint64(t.next), 0 }
func (t *transient) geometry() layout             { return t.layout }
