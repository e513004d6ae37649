package snapshot

import "sync/atomic"

// work counts what first writes, to the snapshot or to its origin, have cost since
// the store was opened, in bytes. A handover passes it on.
type work struct {
	asked  atomic.Int64 // of the writes, as far as they gave chunks to the snapshot
	copied atomic.Int64 // of the origin, in those chunks
	zero   atomic.Int64 // of them: recorded as zeros, nothing was written
	data   atomic.Int64 // written to the COW device, without metadata
}

// Work is what first writes have cost since the store was opened, in bytes.
type Work struct {
	Asked     int64   `json:"first_write_bytes"`   // of writes to the snapshot or its origin, as far as they gave chunks to the snapshot
	Copied    int64   `json:"copied_bytes"`        // saved from the origin
	Zero      int64   `json:"zero_bytes"`          // of those: zeros, which were not written
	Written   int64   `json:"written_bytes"`       // to the COW device: chunks and metadata
	Amplified float64 `json:"write_amplification"` // Written / Asked; 0 when nothing was asked
}

// sumWork is what was counted, with the metadata of the store.
func (c *core) sumWork() Work {
	w := Work{Asked: c.work.asked.Load(), Copied: c.work.copied.Load(), Zero: c.work.zero.Load(), Written: c.work.data.Load()}
	if c.disk != nil {
		w.Written += c.disk.written.Load()
	}
	if w.Asked > 0 {
		w.Amplified = float64(w.Written) / float64(w.Asked)
	}
	return w
}

// saved counts n bytes that were copied from the origin; zero says that they were
// zeros that took no write.
func (w *work) saved(n int64, zero bool) {
	w.copied.Add(n)
	if zero {
		w.zero.Add(n)
	} else {
		w.data.Add(n)
	}
}
