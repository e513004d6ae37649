package main

import (
	"context"
	"errors"
	"io"

	"github.com/dmfuse/dmfuse/control"
)

// app is what every verb gets: the streams, the flags common to all, and the
// way to the daemon. A verb is made by a function of the form
//
//	func newSnapshotCommand(a *app) *cobra.Command
//
// and its RunE returns nil, or an error made by [fail] or [usage], or one that
// came from the client; [exitCode] turns it into the exit code.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	env            func(string) string // os.Getenv

	json        bool // -J: one JSON value on stdout
	noHeadings  bool // -n
	bytes       bool // -b: sizes in bytes
	noAutostart bool
	runDirFlag  string
	socketFlag  string
}

// client gives a client of the daemon that runs; an error with exit code 5
// when none answers or it speaks another protocol.
func (a *app) client(ctx context.Context) (*control.Client, error) {
	c, _, err := a.connect(ctx)
	return c, err
}

// start is client for verbs that create something: it starts a daemon when
// none answers, unless told not to.
func (a *app) start(ctx context.Context) (*control.Client, error) {
	c, _, err := a.connect(ctx)
	if err == nil || !noDaemon(err) || a.noAutostart {
		return c, err
	}
	return a.autostart(ctx)
}

// noDaemon says whether err is that none answers. One of another protocol does
// answer, and keeps a second one away.
func noDaemon(err error) bool {
	var c *control.Error
	return errors.As(err, &c) && c.Code == control.CodeNoDaemon
}

// connect finds the daemon and asks who it is.
func (a *app) connect(ctx context.Context) (*control.Client, control.Version, error) {
	socket, err := a.socket()
	if err != nil {
		return nil, control.Version{}, err
	}
	c := control.NewClient(socket)
	v, err := c.Version(ctx)
	if err != nil {
		return nil, v, err
	}
	if v.Protocol != control.Protocol {
		return nil, v, fail(exitNoDaemon, control.Errorf(control.CodeProtocol,
			"the daemon with pid %d is dmfuse %s, which speaks protocol %d; this is dmfuse %s with protocol %d",
			v.PID, v.Version, v.Protocol, version, control.Protocol),
			"end it with the dmfuse it was started with, or use that one")
	}
	return c, v, nil
}
