package kcopyd

import "github.com/dmfuse/dmfuse/blockdev"

// dataRun is data of a source, as it was last seen. It spares the next requests
// there the question for holes, whose answer may cost the file system a walk to
// the next hole: tmpfs looks at every page on the way, so that on a file
// without holes each copy would cost as much as the file is long.
//
// Only data is remembered. What has become a hole since is read, and is zeros
// at the destination all the same; a hole remembered would lose data.
type dataRun struct {
	id   blockdev.ID
	from int64 // bytes
	to   int64
	uses int // left
}

// A run answers dataRunUses times, and once more for every dataRunPart bytes of
// it, before the source is asked again, so that new holes are found. The longer the
// run, the longer the walk: asked after a fixed number of requests, a copy of 4 GiB in
// memory spent more than half of its time on walks.
const (
	dataRunUses = 256
	dataRunPart = 256 << 10
)

// rememberLocked keeps what a scan found: n bytes of data at off of d.
func (c *Client) rememberLocked(d blockdev.Device, off, n int64) {
	if i, ok := d.(blockdev.Identified); ok && n > 0 {
		c.data = dataRun{id: i.ID(), from: off, to: max(off, off+n), uses: dataRunUses + int(n/dataRunPart)}
	}
}

// knownDataLocked tells whether the bytes at the progress of j are known to be
// data, and if so makes them the run of the job.
func (c *Client) knownDataLocked(j *Job) bool {
	r := &c.data
	i, ok := j.from.Dev.(blockdev.Identified)
	if !ok || r.uses == 0 || i.ID() != r.id {
		return false
	}
	off := (j.from.Start + j.progress).Bytes()
	if off < r.from || off >= r.to {
		return false
	}
	n := min(j.total-j.progress, blockdev.SectorsIn(r.to-off))
	if n == 0 {
		return false
	}
	r.uses--
	j.runEnd, j.runHole = j.progress+n, false
	return true
}
