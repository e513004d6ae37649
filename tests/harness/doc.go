// Package harness is what the suites with the real program share: what a test
// needs of the machine, commands with a time limit, a daemon in a directory of
// its own, loop devices, file systems, and the clearing away of all of it.
//
// Rules:
//
//   - A test says what it needs (RequireRoot, RequireTool, ...). Where it is
//     missing the test is skipped with the reason; with CI=true or DMFUSE_CI set
//     it fails instead, so that CI cannot pass by skipping.
//   - Everything started is registered for cleanup at once; cleanup runs in
//     reverse order, detaches lazily and does not stop at errors.
//   - Every command and every wait has a limit. A daemon that does not answer
//     gets SIGQUIT, so that its goroutines are in the log, which is printed when
//     the test fails.
//   - Directories are called dmfuse-test-*: tests/leftovers.sh finds by that what
//     was left behind.
//   - Random tests take their seed from Seed, which prints it; DMFUSE_SEED=N
//     runs the same again.
package harness
