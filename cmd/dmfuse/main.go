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
	ctx, stop := context.Background(), func() {}
	if _, ok := calledDmsetup(os.Args); !ok { // dmsetup is ended by signals
		ctx, stop = signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	}
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, env: os.Getenv}
	code := a.run(ctx, os.Args)
	stop()
	os.Exit(code)
}
