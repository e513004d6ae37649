// Package server answers the API of package control over a unix socket and
// drives a mapper with it.
//
// # Rules
//
//   - A caller is the user the daemon runs as, or root; the kernel says who it
//     is (SO_PEERCRED). Everybody else gets "permission" and nothing is done.
//   - An apply is all or nothing: every step notes how to undo it before it is
//     done; when one fails, or the caller goes away, the notes are run in
//     reverse order. The undoing ignores the caller and has a limit of its own.
//   - A table that names files is refused when the caller saw another file
//     under that path than the daemon does ([control.View]).
//   - A request never waits longer than its caller: wait, suspend and events
//     end with the connection.
//
// # Locks
//
// The server holds no lock while it calls the mapper, but for applies: they
// run one at a time, so that the undoing of one does not meet the steps of
// another. Single operations run beside them, as in the kernel.
//
// # Failure
//
// code.go is the one place that makes a wire code of an error. A handler that
// panics answers "io" and the panic is logged with its stack.
package server
