package delta

import (
	"crypto/sha256"
	"hash"
	"io"
)

// Writer writes a file of changed ranges. Ranges come in ascending order. An
// error stays: nothing more is written.
type Writer struct {
	w       io.Writer
	hash    hash.Hash
	size    int64
	at      int64 // end of the last range
	records int64
	changed int64 // bytes in ranges of data and zeros
	err     error
}

// NewWriter begins a file with its header.
func NewWriter(w io.Writer, h Header) (*Writer, error) {
	b, err := h.marshal()
	if err != nil {
		return nil, err
	}
	d := &Writer{w: w, hash: sha256.New(), size: h.Size}
	d.put(b)
	return d, d.err
}

func (d *Writer) put(b []byte) {
	if d.err != nil {
		return
	}
	d.hash.Write(b)
	_, d.err = d.w.Write(b)
}

func (d *Writer) record(r Record) error {
	if d.err == nil {
		d.err = r.follows(d.at, d.size)
	}
	if d.err == nil {
		d.put(r.marshal())
		d.put(r.Data)
	}
	if d.err == nil {
		d.at = r.End()
		d.records++
		if r.Kind != Same {
			d.changed += r.Len
		}
	}
	return d.err
}

// Data adds the bytes of a range, at most [MaxData].
func (d *Writer) Data(off int64, p []byte) error {
	return d.record(Record{Kind: Data, Off: off, Len: int64(len(p)), Sum: Sum(p), Data: p})
}

// Zero adds a range of zeros, of any length.
func (d *Writer) Zero(off, n int64) error {
	return d.record(Record{Kind: Zero, Off: off, Len: n})
}

// Same adds a witness: a range that did not change, and its bytes.
func (d *Writer) Same(off int64, p []byte) error {
	return d.record(Record{Kind: Same, Off: off, Len: int64(len(p)), Sum: Sum(p)})
}

// Close ends the file. It is whole only after that.
func (d *Writer) Close() error {
	d.put(Record{Kind: end, Off: d.records, Len: d.changed}.marshal())
	if d.err == nil {
		_, d.err = d.w.Write(d.hash.Sum(nil))
	}
	return d.err
}
