package mirror

// NewLog is a disk log for that many regions, on a device with that logical
// block size: all of [LogSize] bytes. With clean every region is in sync, else
// none is.
func NewLog(regions uint64, block int, clean bool) []byte {
	b := make([]byte, LogSize(regions, block))
	Header{Magic: logMagic, Version: logVersion, Regions: regions}.encode(b)
	if !clean {
		return b
	}
	bits := b[offBits:]
	for i := range regions / 8 {
		bits[i] = 0xff
	}
	if left := regions % 8; left > 0 {
		bits[regions/8] = 1<<left - 1
	}
	return b
}
