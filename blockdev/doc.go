// Package blockdev is what a block device is: bytes that can be read and
// written at any offset, flushed, and sometimes zeroed, discarded or searched
// for holes. Everything above works on [Device]; what is below is a regular
// file or block device of the host ([File], shared through a [Pool]), memory
// ([Mem]), or a window on another device ([Slice]).
package blockdev
