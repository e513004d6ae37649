// Package compat replays what the Linux kernel and dmsetup did on a test
// machine and compares: texts to the letter, contents by their sums, images
// byte for byte. The recordings are in testdata; README.md there says how to
// read them.
//
// Replay is in-process: mapper and targets over files that stand for the loop
// devices 7:0, 7:1, … of the recordings. What differs on purpose is listed in
// one table, known_test.go, with the reason; an entry that no longer differs
// fails the test.
package compat
