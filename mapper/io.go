package mapper

import (
	"context"
	"errors"
	"fmt"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// begin lets a request in and gives it the live table, which stays live until
// end. A request on a suspended device waits; one on a device without a live
// table fails at once, suspended or not (mapper states: doc.go).
func (d *Device) begin(ctx context.Context) (*table, error) {
	for {
		if d.gate.enter() {
			if t := d.live.Load(); t != nil {
				return t, nil
			}
			d.gate.leave()
			return nil, errNoTable
		}
		opened := d.gate.opening()
		if d.live.Load() == nil {
			return nil, errNoTable
		}
		if d.dead.Load() {
			return nil, errDead
		}
		if err := d.gate.wait(ctx, opened); err != nil {
			return nil, fmt.Errorf("%w while device %s is suspended", err, d.Name())
		}
	}
}

func (d *Device) end() { d.gate.leave() }

// again says whether a request that a target gave back is to be queued again:
// during a suspend without flush (kernel: dm_handle_requeue), or when the target
// had only waited. Then it returns when the gate is shut, or the suspend was
// given up: the target would only give it back once more.
//
// The request is no longer inside, so that the suspend may be over: seen is the
// count of [Device.noflush] before the request began.
func (d *Device) again(ctx context.Context, err error, seen uint64) bool {
	switch {
	case errors.Is(err, target.ErrPostponed):
	case errors.Is(err, target.ErrRequeue) && (d.givesBack() || d.noflush.Load() != seen):
	default:
		return false
	}
	if begun := d.suspending.Load(); begun != nil {
		select {
		case <-*begun:
		case <-ctx.Done(): // whoever it waits for next says so
		}
	}
	return true
}

// read fills p from off; the range lies inside the device. It returns the bytes
// read before the first error.
func (d *Device) read(ctx context.Context, p []byte, off int64) (done int, err error) {
	start := d.count.begin()
	if f := d.faults.Load(); f != nil {
		done, err = f.read(ctx, p, off)
	} else {
		done, err = d.readLive(ctx, p, off)
	}
	d.count.end(&d.count.reads, start, int64(done), err)
	return done, err
}

func (d *Device) readLive(ctx context.Context, p []byte, off int64) (done int, err error) {
	for {
		seen := d.noflush.Load()
		n, err := d.readOnce(ctx, p[done:], off+int64(done))
		done += n
		if err == nil || !d.again(ctx, err, seen) {
			return done, err
		}
	}
}

func (d *Device) readOnce(ctx context.Context, p []byte, off int64) (done int, err error) {
	t, err := d.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer d.end()
	if off < 0 || int64(len(p)) > t.size-off {
		return 0, d.pastEnd("read", off, int64(len(p)))
	}
	defer d.account(statsRead, off, int64(len(p))).done()
	for done < len(p) {
		at := off + int64(done)
		s := t.find(at)
		n := int(min(s.end-at, int64(len(p)-done)))
		if err := s.target.Read(ctx, p[done:done+n], at); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

func (d *Device) write(ctx context.Context, p []byte, off int64, fua bool) (done int, err error) {
	start := d.count.begin()
	if f := d.faults.Load(); f != nil {
		done, err = f.write(ctx, p, off, fua)
	} else {
		done, err = d.writeLive(ctx, p, off, fua)
	}
	d.count.end(&d.count.writes, start, int64(done), err)
	return done, err
}

func (d *Device) writeLive(ctx context.Context, p []byte, off int64, fua bool) (done int, err error) {
	for {
		seen := d.noflush.Load()
		n, err := d.writeOnce(ctx, p[done:], off+int64(done), fua)
		done += n
		if err == nil || !d.again(ctx, err, seen) {
			return done, err
		}
	}
}

func (d *Device) writeOnce(ctx context.Context, p []byte, off int64, fua bool) (done int, err error) {
	t, err := d.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer d.end()
	if t.readOnly {
		return 0, d.errReadOnly()
	}
	if off < 0 || int64(len(p)) > t.size-off {
		return 0, d.pastEnd("write", off, int64(len(p)))
	}
	defer d.account(statsWrite, off, int64(len(p))).done()
	for done < len(p) {
		at := off + int64(done)
		s := t.find(at)
		n := int(min(s.end-at, int64(len(p)-done)))
		if err := s.target.Write(ctx, p[done:done+n], at, fua); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// Flush returns when every write answered before the call is durable
// (promise 1).
func (d *Device) Flush(ctx context.Context) (err error) {
	start := d.count.begin()
	if f := d.faults.Load(); f != nil {
		err = f.flush(ctx)
	} else {
		err = d.flushLive(ctx)
	}
	d.count.end(&d.count.flushes, start, 0, err)
	return err
}

func (d *Device) flushLive(ctx context.Context) error {
	for {
		seen := d.noflush.Load()
		err := d.flushOnce(ctx)
		if err == nil || !d.again(ctx, err, seen) {
			return err
		}
	}
}

func (d *Device) flushOnce(ctx context.Context) error {
	t, err := d.begin(ctx)
	if err != nil {
		return err
	}
	defer d.end()
	err = t.flush(ctx)
	if lost := d.takeFlushError(); lost != nil && err == nil {
		err = lost
	}
	return err
}

// zero makes a range inside the device read as zeros.
func (d *Device) zero(ctx context.Context, off, n int64, unmap bool) (err error) {
	start := d.count.begin()
	if f := d.faults.Load(); f != nil {
		err = f.zero(ctx, off, n, unmap)
	} else {
		err = d.zeroLive(ctx, off, n, unmap)
	}
	d.count.end(&d.count.writes, start, bytesDone(n, err), err)
	return err
}

func (d *Device) zeroLive(ctx context.Context, off, n int64, unmap bool) error {
	return d.pieces(ctx, "zero", off, n, true, func(s *segment, at, k int64) error {
		return s.zero(ctx, at, k, unmap)
	})
}

// discard tells the targets that a range inside the device is not needed. It is
// offered only when all of them take it.
func (d *Device) discard(ctx context.Context, off, n int64) (err error) {
	start := d.count.begin()
	if f := d.faults.Load(); f != nil {
		err = f.discard(ctx, off, n)
	} else {
		err = d.discardLive(ctx, off, n)
	}
	d.count.end(&d.count.discards, start, bytesDone(n, err), err)
	return err
}

func (d *Device) discardLive(ctx context.Context, off, n int64) error {
	return d.pieces(ctx, "discard", off, n, true, func(s *segment, at, k int64) error {
		return s.discarder.Discard(ctx, at, k)
	})
}

// pieces cuts a range at segment borders and calls one for each piece.
func (d *Device) pieces(ctx context.Context, op string, off, n int64, write bool, one func(*segment, int64, int64) error) error {
	for n > 0 {
		seen := d.noflush.Load()
		done, err := d.piecesOnce(ctx, op, off, n, write, one)
		off, n = off+done, n-done
		if err != nil && !d.again(ctx, err, seen) {
			return err
		}
	}
	return nil
}

func (d *Device) piecesOnce(ctx context.Context, op string, off, n int64, write bool, one func(*segment, int64, int64) error) (done int64, err error) {
	t, err := d.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer d.end()
	switch {
	case write && t.readOnly:
		return 0, d.errReadOnly()
	case off < 0 || n > t.size-off:
		return 0, d.pastEnd(op, off, n)
	case op == "discard" && !t.discards:
		return 0, blockdev.ErrUnsupported
	}
	defer d.account(statsWrite, off, n).done()
	for done < n {
		at := off + done
		s := t.find(at)
		k := min(s.end-at, n-done)
		if err := one(s, at, k); err != nil {
			return done, err
		}
		done += k
	}
	return done, nil
}

// zeros are written where a target cannot zero. Nothing ever changes them.
var zeros [256 << 10]byte

func (s *segment) zero(ctx context.Context, off, n int64, unmap bool) error {
	if s.zeroer != nil {
		err := s.zeroer.Zero(ctx, off, n, unmap)
		if err == nil || blockdev.Kind(err) != blockdev.ErrUnsupported {
			return err
		}
	}
	for n > 0 {
		k := min(n, int64(len(zeros)))
		if err := s.target.Write(ctx, zeros[:k], off, false); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// extent describes the run at off, over segment borders where the next segment
// goes on with the same.
func (d *Device) extent(ctx context.Context, off int64) (length int64, hole bool, err error) {
	t, err := d.begin(ctx)
	if err != nil {
		return 0, false, err
	}
	defer d.end()
	if off < 0 || off >= t.size {
		return 0, false, d.pastEnd("extent", off, 1)
	}
	if f := d.faults.Load(); f != nil && !f.kept.empty() {
		return t.size - off, false, nil // what is kept back may fill holes
	}
	for at := off; at < t.size; {
		s := t.find(at)
		n, h, err := s.extent(ctx, at)
		if err != nil {
			if at > off {
				break // a reader that gets there sees the error
			}
			return 0, false, err
		}
		if at > off && h != hole {
			break
		}
		hole, at = h, at+n
		length = at - off
		if at < s.end {
			break
		}
	}
	return length, hole, nil
}

// extent is that of the target, never less than a byte nor past the segment.
func (s *segment) extent(ctx context.Context, off int64) (int64, bool, error) {
	if s.extenter == nil {
		return s.end - off, false, nil
	}
	n, hole, err := s.extenter.Extent(ctx, off)
	if err != nil {
		if blockdev.Kind(err) == blockdev.ErrUnsupported {
			return s.end - off, false, nil
		}
		return 0, false, err
	}
	return max(1, min(n, s.end-off)), hole, nil
}

func (d *Device) pastEnd(op string, off, n int64) error {
	return &blockdev.Error{Op: op, Device: d.Name(), Offset: off, Length: n, Err: blockdev.ErrRange}
}

func (d *Device) errReadOnly() error {
	return fmt.Errorf("%w: device %s", blockdev.ErrReadOnly, d.Name())
}
