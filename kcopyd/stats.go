package kcopyd

// Stats counts what a client did since it was made, and what it has to do.
type Stats struct {
	Jobs      uint64 // requests submitted
	Callbacks uint64 // callbacks that have returned, those of Prepared too
	Failed    uint64 // requests that ended with an error
	Cancelled uint64 // requests that Cancel cut short

	Reads       uint64 // segments read
	Writes      uint64 // segments written or zeroed, counted per destination
	Offloads    uint64 // segments copied by the file system
	ReadErrors  uint64 // of Reads, failed
	WriteErrors uint64 // of Writes, failed

	BytesRead      uint64 // read without error
	BytesWritten   uint64 // written without error, summed over destinations
	BytesZeroed    uint64 // zeroed without error (Zero, and holes of a source), summed over destinations
	BytesOffloaded uint64 // copied by the file system

	BufferWaits uint64 // times a segment found too few buffers

	Queued      int // requests that want to start another segment
	InFlight    int // segments between buffer and end
	Outstanding int // requests whose callback has not returned, and each Prepared not used
	PagesTotal  int // the budget
	PagesFree   int // of it, not in use
}

// Stats returns the counters.
func (c *Client) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Queued = c.queue.n
	s.Outstanding = c.all.n + c.prepared
	s.PagesTotal, s.PagesFree = c.buf.pages, c.buf.free
	return s
}
