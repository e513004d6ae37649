package delta

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
)

// Reader reads a file of changed ranges and checks all of it. Whoever must do
// nothing with a file that is not whole reads it to the end first.
type Reader struct {
	r       io.Reader
	hash    hash.Hash
	header  Header
	pos     int64 // in the file
	at      int64 // end of the last range
	records int64
	changed int64
	done    bool
	buf     []byte
}

// NewReader reads the header.
func NewReader(r io.Reader) (*Reader, error) {
	d := &Reader{r: r, hash: sha256.New()}
	b := make([]byte, fixedSize)
	if err := d.get(b); err != nil {
		return nil, err
	}
	n, err := headerSize(b)
	if err != nil {
		return nil, err
	}
	b = append(b, make([]byte, n-fixedSize)...)
	if err := d.get(b[fixedSize:]); err != nil {
		return nil, err
	}
	return d, d.header.unmarshal(b)
}

// Header is the header of the file.
func (d *Reader) Header() Header { return d.header }

// get reads all of b.
func (d *Reader) get(b []byte) error {
	n, err := io.ReadFull(d.r, b)
	d.pos += int64(n)
	d.hash.Write(b[:n])
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return invalid("the file is cut off: it ends after %d bytes, before its end record", d.pos)
	}
	return err
}

// Next is the next record. Its data is good until the next call. Behind the last
// one it is [io.EOF], and then everything was checked.
func (d *Reader) Next() (Record, error) {
	var r Record
	if d.done {
		return r, io.EOF
	}
	at := d.pos
	r, err := d.next()
	if err != nil && err != io.EOF && d.pos > at {
		err = fmt.Errorf("record at byte %d of the file: %w", at, err)
	}
	return r, err
}

func (d *Reader) next() (r Record, err error) {
	var head [recordSize]byte
	if err := d.get(head[:]); err != nil {
		return r, err
	}
	if err := r.unmarshal(head[:]); err != nil {
		return r, err
	}
	if r.Kind == end {
		return r, d.end(r)
	}
	if err := r.follows(d.at, d.header.Size); err != nil {
		return r, err
	}
	d.at = r.End()
	d.records++
	if r.Kind != Same {
		d.changed += r.Len
	}
	if r.Kind != Data {
		return r, nil
	}
	if int64(len(d.buf)) < r.Len {
		d.buf = make([]byte, r.Len)
	}
	r.Data = d.buf[:r.Len]
	if err := d.get(r.Data); err != nil {
		return r, err
	}
	if Sum(r.Data) != r.Sum {
		return r, invalid("the checksum of the %d bytes for byte %d does not fit", r.Len, r.Off)
	}
	return r, nil
}

// end checks the end of the file.
func (d *Reader) end(r Record) error {
	if r.Off != d.records || r.Len != d.changed {
		return invalid("the end tells of %d records and %d bytes, but there are %d and %d", r.Off, r.Len, d.records, d.changed)
	}
	want := d.hash.Sum(nil)
	var have [digestSize]byte
	if err := d.get(have[:]); err != nil {
		return err
	}
	if !bytes.Equal(want, have[:]) {
		return invalid("the checksum of the whole file does not fit")
	}
	if n, err := io.ReadFull(d.r, have[:1]); n != 0 {
		return invalid("the file goes on behind its end, at byte %d", d.pos)
	} else if err != io.EOF {
		return err
	}
	d.done = true
	return io.EOF
}
