// Package delta reads and writes files of changed ranges: what has to be written
// over a copy of a device to turn it into a snapshot of it. docs/formats.md
// describes every byte.
//
// A file is a header, records in ascending order of their offset, and an end. A
// record is the data of a range, a range of zeros, or a witness: a range that did
// not change, with a checksum, so that a wrong target is found before it is
// written to. Each part has its own checksum, and the end has one of the whole
// file: a file that was cut off or changed is not applied, not even its
// beginning.
package delta
