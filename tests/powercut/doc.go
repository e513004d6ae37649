// Package powercut proves file systems on mapped devices against power cuts: a
// log of the writes of ext4 under load is replayed to every flush, and through
// the contents that a power cut can leave.
package powercut
