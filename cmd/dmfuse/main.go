// Command dmfuse is device-mapper without the kernel: the daemon, its command
// line, and dmsetup when called by that name.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx := context.Background()
	if _, ok := calledDmsetup(os.Args); !ok { // dmsetup is ended by signals
		// Never stopped: a signal that comes when all is done must not make it
		// look as if it were not.
		ctx, _ = signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	}
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, env: os.Getenv}
	os.Exit(a.run(ctx, os.Args))
}
