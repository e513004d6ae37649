package main

import (
	"errors"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/dmfuse/dmfuse/fs"
	"golang.org/x/sys/unix"
)

// Names of what a keeper leaves with the service manager (sd_notify(3),
// FDSTORE=1), which gives it to the next one if this one dies
// (sd_listen_fds(3)). The lock of the run directory is not among them: it is
// what tells that a daemon lives.
const (
	storeFuse   = "dmfuse-fuse"
	storeMemory = "dmfuse-memory"
	storeSocket = "dmfuse-control"
)

// store leaves the descriptors with the service manager, if there is one.
func (k *kept) store() {
	k.storeAs(storeFuse, k.held.Fuse)
	k.storeAs(storeMemory, []int{k.held.Memory})
	k.storeAs(storeSocket, []int{k.socket})
}

func (k *kept) storeAs(name string, fds []int) {
	c, err := notifySocket(k.env)
	if c == nil || err != nil {
		return
	}
	defer c.Close()
	// Package net sends descriptors over a socket that is not connected only.
	raw, err := c.SyscallConn()
	if err == nil {
		var sent error
		err = raw.Write(func(fd uintptr) bool {
			sent = unix.Sendmsg(int(fd), []byte("FDSTORE=1\nFDNAME="+name), unix.UnixRights(fds...), nil, 0)
			return !errors.Is(sent, unix.EAGAIN)
		})
		err = errors.Join(err, sent)
	}
	if err != nil {
		k.log.WithError(err).Warn("the service manager does not store descriptors: a keeper that dies takes the mount with it")
	}
}

// storeRemoved is the message that has the service manager close them.
func (k *kept) storeRemoved() string {
	return "FDSTOREREMOVE=1\nFDNAME=" + storeFuse + "\nFDSTOREREMOVE=1\nFDNAME=" + storeMemory + "\nFDSTOREREMOVE=1\nFDNAME=" + storeSocket
}

// isStored says whether the service manager gives us what a keeper left.
func isStored(env func(string) string) bool {
	pid, err := strconv.Atoi(env("LISTEN_PID"))
	return err == nil && pid == os.Getpid() && strings.Contains(env("LISTEN_FDNAMES"), storeFuse)
}

// takeStored takes what a dead keeper left, if it is whole and its mount lives.
func (k *kept) takeStored() bool {
	if !k.o.stored {
		return false
	}
	h := fs.Held{Dir: k.o.mount, Memory: -1}
	var socket = -1
	for i, name := range strings.Split(k.env("LISTEN_FDNAMES"), ":") {
		fd := 3 + i
		unix.CloseOnExec(fd)
		switch name {
		case storeFuse:
			h.Fuse = append(h.Fuse, fd)
		case storeMemory:
			h.Memory = fd
		case storeSocket:
			socket = fd
		}
	}
	if len(h.Fuse) == 0 || h.Memory < 0 || socket < 0 || !h.Alive() {
		for _, fd := range append(h.Fuse, h.Memory, socket) {
			if fd >= 0 {
				unix.Close(fd)
			}
		}
		return false
	}
	k.held, k.socket = &h, socket
	k.log.Info("going on with the mount of a keeper that died")
	return true
}

// notifySocket connects to the service manager; nil without one.
func notifySocket(env func(string) string) (*net.UnixConn, error) {
	path := env("NOTIFY_SOCKET")
	if path == "" {
		return nil, nil
	}
	if path[0] == '@' {
		path = "\x00" + path[1:]
	}
	return net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
}
