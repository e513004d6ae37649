package main

import (
	"bufio"
	"io"
)

// bufferedOutput gathers what is printed, as a thousand devices are a thousand
// lines. What goes to stderr, or waits, comes after what was printed before it.
type bufferedOutput struct {
	w      *bufio.Writer
	direct io.Writer // what the lines go to, for a program that is started
	err    error     // of an earlier flush
}

func newBufferedOutput(w io.Writer) *bufferedOutput {
	return &bufferedOutput{w: bufio.NewWriterSize(w, 64<<10), direct: w}
}

func (b *bufferedOutput) Write(p []byte) (int, error) { return b.w.Write(p) }

func (b *bufferedOutput) flush() error {
	if err := b.w.Flush(); b.err == nil {
		b.err = err
	}
	return b.err
}

// afterOutput is stderr: what was printed to stdout before stands before it.
type afterOutput struct {
	out *bufferedOutput
	w   io.Writer
}

func (a *afterOutput) Write(p []byte) (int, error) {
	_ = a.out.flush() // an error is told at the end
	return a.w.Write(p)
}

// buffered is the app with its output gathered.
func (a *app) buffered() (*app, *bufferedOutput) {
	out := newBufferedOutput(a.stdout)
	b := *a
	b.stdout, b.stderr = out, &afterOutput{out, a.stderr}
	return &b, out
}

// flushOutput prints what was gathered, and gives the writer that gathers
// nothing.
func (d *dm) flushOutput() io.Writer {
	if b, ok := d.stdout.(*bufferedOutput); ok {
		_ = b.flush() // an error is told at the end
		return b.direct
	}
	return d.stdout
}
