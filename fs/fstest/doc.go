// Package fstest has devices and servers to test and to measure package fs
// with: a device in memory that can be held up and made to fail (Memory), a
// device that passes a file through (File), a list of devices (List), and a
// FUSE server that does nothing but pread and pwrite, beside which fs is
// measured (Plain).
package fstest
