// Package notefile has what notes for the next daemon are made of: a file that is
// mapped into memory, so that a write to it costs no system call and outlives a
// kill, and a mark on the files that a note speaks of, by which somebody who
// opens them makes the note void.
package notefile
