// Package crash kills the daemon with signal 9 under load and starts it again:
// the devices come back as they were (promise 9), everything that was answered
// is there (promises 1 and 3), each snapshot shows its own moment (promise 2),
// and every store is sound by its checker. Mirrors lose nothing that was answered,
// and their legs become equal (promise 4).
//
// Power cuts, where what was not flushed is lost as well, are simulated in
// package snapshot on the crash device of blockdev/devtest.
package crash
