package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// runDir is the run directory R: where the socket, the mount, the state and
// the log of a daemon are.
func (a *app) runDir() (string, error) {
	dir := a.runDirFlag
	if dir == "" {
		dir = a.env("DMFUSE_RUN_DIR")
	}
	if dir != "" {
		return filepath.Abs(dir)
	}
	if os.Geteuid() == 0 {
		return "/run/dmfuse", nil
	}
	if x := a.env("XDG_RUNTIME_DIR"); x != "" && filepath.IsAbs(x) {
		return filepath.Join(x, "dmfuse"), nil
	}
	return fmt.Sprintf("/tmp/dmfuse-%d", os.Getuid()), nil
}

// socket is the path of the control socket.
func (a *app) socket() (string, error) {
	s := a.socketFlag
	if s == "" {
		s = a.env("DMFUSE_SOCKET")
	}
	if s != "" {
		return filepath.Abs(s)
	}
	dir, err := a.runDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "control.sock"), nil
}
