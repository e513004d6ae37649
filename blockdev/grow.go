package blockdev

// Grower is a device that can be made larger: a COW file that grows with its
// snapshot.
type Grower interface {
	// Grow makes the device at least size bytes long. What is new reads as
	// zeros. A device that cannot grow returns [ErrUnsupported], a full disk
	// [ErrNoSpace], a size beyond the file system [ErrTooBig]; the size is then
	// as before.
	Grow(size int64) error
}

// Preallocator is a device that can take the space for a range beforehand.
type Preallocator interface {
	// Preallocate takes the space for n bytes at off, so that writes there do
	// not meet a full disk. The content does not change. [ErrUnsupported]
	// means that nothing was done.
	Preallocate(off, n int64) error
}

// Grow makes d at least size bytes long, [ErrUnsupported] where it cannot grow.
func Grow(d Device, size int64) error {
	if g, ok := d.(Grower); ok {
		return g.Grow(size)
	}
	if size <= d.Size() {
		return nil
	}
	return ErrUnsupported
}

// Preallocate takes the space for n bytes at off, [ErrUnsupported] where d
// cannot.
func Preallocate(d Device, off, n int64) error {
	if a, ok := d.(Preallocator); ok {
		return a.Preallocate(off, n)
	}
	return ErrUnsupported
}
