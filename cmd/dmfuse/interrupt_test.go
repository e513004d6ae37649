package main

import (
	"bytes"
	"context"
	"net"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A command that a signal ends while it waits for the daemon says so in words.
func TestInterrupt_IsSaid(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		socket := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ctx, stop := signal.NotifyContext(t.Context(), sig)
		defer stop()
		go func() { // a daemon that never answers
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			_ = syscall.Kill(syscall.Getpid(), sig)
			<-ctx.Done()
		}()
		var out, errs bytes.Buffer
		a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &errs, env: func(string) string { return "" }}
		code := a.run(ctx, []string{"dmfuse", "--socket", socket, "snapshot", "create", "base", "snap"})
		if text := errs.String(); code != exitFailed || !strings.Contains(text, sig.String()+" signal received") || strings.Contains(text, context.Canceled.Error()) {
			t.Errorf("%v: exit code %d, %q", sig, code, text)
		}
	}
}
