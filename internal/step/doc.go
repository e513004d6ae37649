// Package step names the places between two changes that must not be in one
// piece: where a daemon that dies leaves one of them done and the next one not.
//
// [At] does nothing in the program. Built with the tag "steps", as tests/crash
// does, a process dies at a step whose name is a file in the directory that
// DMFUSE_TEST_STEPS names. The file goes first, so that one process dies of it.
// A file that contains "panic" has the process die of itself there; one that
// contains "hang" has it stand still. A number behind the word is how many processes
// it is for, a second one how many times they pass the step before.
package step
