package fs

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/dmfuse/dmfuse/blockdev"
)

// clearStale takes mounts of dead daemons away from dir. A mount of ours that
// answers is ErrBusy; any other dead mount is an error, for it is not ours to
// take away.
func clearStale(dir string, log logrus.FieldLogger) error {
	for {
		info, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			return err
		}
		kind, mounted := mountedAt(string(info), dir)
		if !mounted {
			return nil
		}
		err = alive(dir)
		dead := errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED) || errors.Is(err, unix.ECANCELED) // errno: nobody serves the mount; the last, its rings end just now
		switch {
		case kind != "fuse."+subtype && dead:
			return fmt.Errorf("%w: a dead mount of type %s is there; unmount it first", blockdev.ErrBusy, kind)
		case kind != "fuse."+subtype:
			return nil // an ordinary mount point is as good as a directory
		case !dead:
			return fmt.Errorf("%w: another dmfuse daemon serves it", blockdev.ErrBusy)
		}
		log.WithField("dir", dir).Warn("clearing away the mount of a daemon that is dead")
		if err := unmountLazily(dir); err != nil {
			return err
		}
	}
}

// alive asks the file system mounted at dir for anything. A daemon that hangs
// counts as alive after a while.
func alive(dir string) error {
	answer := make(chan error, 1)
	go func() {
		var st unix.Stat_t
		answer <- unix.Lstat(dir, &st)
	}()
	limit := time.NewTimer(5 * time.Second)
	defer limit.Stop()
	select {
	case err := <-answer:
		return err
	case <-limit.C:
		return nil
	}
}

// mountedAt returns the type of the topmost mount at dir, an absolute path
// without links, from the text of /proc/self/mountinfo.
func mountedAt(info, dir string) (kind string, mounted bool) {
	for line := range strings.Lines(info) {
		words := strings.Fields(line)
		sep := slices.Index(words, "-") // after a varying number of words
		if sep < 5 || sep+1 >= len(words) {
			continue
		}
		if unescapeMount(words[4]) == dir {
			kind, mounted = words[sep+1], true // the last line is the topmost
		}
	}
	return kind, mounted
}

// unescapeMount undoes the octal escapes of mountinfo.
func unescapeMount(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
