// Package fs shows devices as files in a FUSE mount: one file per device, and
// beside them read-only information files in .dmfuse/NAME.
//
// What the files do (FileSystem) is apart from how requests arrive (Mount, over
// go-fuse's Server): FileSystem is a fuse.RawFileSystem and runs under
// fuse.ProtocolServer as well.
package fs
