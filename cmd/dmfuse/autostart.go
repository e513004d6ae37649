package main

import (
	"context"
	"errors"

	"github.com/dmfuse/dmfuse/control"
)

// autostart starts a daemon and waits until it answers.
func (a *app) autostart(ctx context.Context) (*control.Client, error) {
	return nil, fail(exitNoDaemon, errors.New("no daemon answers"), "start one with: dmfuse serve")
}
