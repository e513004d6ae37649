// Command bench measures the program from the outside: fio on the device files,
// beside other programs that do the same job and beside the plain file.
//
// # Words
//
// A place is where all files of a run lie: in memory or on a disk. A load is
// what fio does: block size, direction, queue depth. A subject is a program that
// shows a file; each load runs on every subject. A round is one turn of a load
// over all its subjects: A B C, A B C, … and not A A, B B, so that whatever else
// the machine does falls on all of them. A ratio is taken inside a round, and
// its median over the rounds is reported.
//
// # Rules
//
//  1. Figures of different runs are not compared, only ratios of one run.
//  2. A first write meets each chunk once: a subject that copies on write is
//     made anew for every round, and fio writes every block at most once.
//  3. All subjects have the same base, full of data that is not zero, and the
//     same load to the byte.
//  4. A peer that is not installed, or cannot do a load, has a row that says so;
//     so has what the machine does not offer (notHere), io_uring for one. A
//     failure of dmfuse ends the run with an error.
//  5. In memory the pages that a load needs anew were in use just before: else the
//     host of a virtual machine decides what a first write costs.
//  6. Everything that is started is registered for its end at once, what a
//     command leaves in the kernel even before. Ctrl-C leaves nothing behind,
//     nor does an output that breaks; when this program is killed, what it started ends
//     and unmounts, and only files are left (dmfuse-bench-*).
package main
