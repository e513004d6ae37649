package server

import (
	"context"
	"errors"
	"net"

	"golang.org/x/sys/unix"
)

type peerKey struct{}

// peer is what the kernel says of the process at the other end.
type peer struct {
	cred *unix.Ucred
	err  error
}

// peerContext notes who is at the other end of a connection.
func peerContext(ctx context.Context, c net.Conn) context.Context {
	cred, err := peerCred(c)
	return context.WithValue(ctx, peerKey{}, peer{cred, err})
}

func peerCred(c net.Conn) (*unix.Ucred, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.New("the connection is no unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var cerr error
	err = raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	return cred, errors.Join(err, cerr)
}

// peerOf is the process at the other end of the connection of a request.
func peerOf(ctx context.Context) peer {
	p, ok := ctx.Value(peerKey{}).(peer)
	if !ok {
		return peer{err: errors.New("no connection")}
	}
	return p
}

// pid is the process id, 0 when it is not known.
func (p peer) pid() int {
	if p.err != nil {
		return 0
	}
	return int(p.cred.Pid)
}
