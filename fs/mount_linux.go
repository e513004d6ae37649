package fs

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/dmfuse/dmfuse/blockdev"
)

// mountFuse mounts at dir and returns the descriptor of /dev/fuse, which is
// close-on-exec. Root needs no helper program. Everybody else, and a root who
// may not mount (a container), needs fusermount3. go-fuse could do both, but
// leaves the descriptor open to every program the daemon starts.
func mountFuse(dir string, o Options) (int, error) {
	if os.Geteuid() == 0 {
		fd, err := mountDirect(dir, o)
		if err == nil || !errors.Is(err, unix.EPERM) { // errno: mount's word for "not you"
			return fd, err
		}
	}
	return mountByHelper(dir, o)
}

// mountDirect mounts by mount(2).
func mountDirect(dir string, o Options) (int, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/fuse: %w", err)
	}
	data := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,max_read=%d",
		fd, unix.S_IFDIR, os.Geteuid(), os.Getegid(), maxRequest)
	if o.AllowOther {
		data += ",allow_other,default_permissions"
	}
	err = unix.Mount(o.FsName, dir, "fuse."+subtype, unix.MS_NOSUID|unix.MS_NODEV, data)
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// mountByHelper has fusermount3 mount; it sends the descriptor back over a
// socket.
func mountByHelper(dir string, o Options) (int, error) {
	bin, err := helper()
	if err != nil {
		return -1, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "fusermount"), os.NewFile(uintptr(pair[1]), "fusermount")
	defer ours.Close()
	defer theirs.Close()
	words := []string{"fsname=" + escapeOption(o.FsName), "subtype=" + subtype, fmt.Sprintf("max_read=%d", maxRequest)}
	if o.AllowOther {
		words = append(words, "allow_other", "default_permissions")
	}
	var said bytes.Buffer
	cmd := exec.Command(bin, "-o", strings.Join(words, ","), "--", dir)
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		return -1, helperError(bin, err, said.String())
	}
	return receiveFD(ours)
}

// receiveFD takes the one descriptor that was sent over a socket; package net
// receives it close-on-exec.
func receiveFD(sock *os.File) (int, error) {
	c, err := net.FileConn(sock)
	if err != nil {
		return -1, err
	}
	defer c.Close()
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return -1, fmt.Errorf("a socket of type %T", c)
	}
	data, oob := make([]byte, 4), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(data, oob)
	if err != nil {
		return -1, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return -1, fmt.Errorf("fusermount sent no descriptor: %v", err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return -1, fmt.Errorf("fusermount sent no descriptor: %v", err)
	}
	return fds[0], nil
}

// escapeOption keeps commas and backslashes in a mount option.
func escapeOption(s string) string {
	return strings.NewReplacer(`\`, `\\`, `,`, `\,`).Replace(s)
}

// helper finds the program that mounts for users.
func helper() (string, error) {
	for _, name := range []string{"fusermount3", "fusermount", "/bin/fusermount3", "/bin/fusermount"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("fusermount3 is not installed (package fuse3), and only root can mount without it")
}

func helperError(bin string, err error, said string) error {
	said = strings.TrimSpace(said)
	if strings.Contains(said, "busy") {
		return fmt.Errorf("%w: %s", blockdev.ErrBusy, said)
	}
	if said == "" {
		return fmt.Errorf("%s: %w", bin, err)
	}
	return errors.New(said)
}

// unmountClean unmounts dir if nobody uses it.
func unmountClean(dir string) error { return unmount(dir, unix.UMOUNT_NOFOLLOW, "-u") }

// unmountLazily takes dir out of the tree, whoever uses it.
func unmountLazily(dir string) error {
	return unmount(dir, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH, "-uz")
}

// abortMount is unmountLazily after ending the connection.
func abortMount(dir string) error {
	return unmount(dir, unix.UMOUNT_NOFOLLOW|unix.MNT_FORCE|unix.MNT_DETACH, "-uz")
}

func unmount(dir string, flags int, arg string) error {
	err := unix.Unmount(dir, flags)
	if err == nil || !errors.Is(err, unix.EPERM) { // errno: umount's word for "not you"
		return err
	}
	bin, err := helper()
	if err != nil {
		return err
	}
	var said bytes.Buffer
	cmd := exec.Command(bin, arg, "--", dir)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		return helperError(bin, err, said.String())
	}
	return nil
}
