// Package kernel exchanges snapshot stores and mirrors with a real Linux kernel, both ways:
// what dmfuse writes the kernel reads, what the kernel writes dmfuse reads, and
// each goes on where the other stopped. It runs with DMFUSE_KERNEL=1 ("make
// test-kernel"); the kernel is Debian's user-mode-linux, see package uml.
package kernel
