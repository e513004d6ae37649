package main

import (
	"strings"

	"golang.org/x/sys/unix"
)

// mountWords are the options of mount(8) that are flags of mount(2). Those in
// clear take the flag away.
var mountWords = map[string]struct{ set, clear uintptr }{
	"ro": {unix.MS_RDONLY, 0}, "rw": {0, unix.MS_RDONLY},
	"nosuid": {unix.MS_NOSUID, 0}, "suid": {0, unix.MS_NOSUID},
	"nodev": {unix.MS_NODEV, 0}, "dev": {0, unix.MS_NODEV},
	"noexec": {unix.MS_NOEXEC, 0}, "exec": {0, unix.MS_NOEXEC},
	"sync": {unix.MS_SYNCHRONOUS, 0}, "async": {0, unix.MS_SYNCHRONOUS},
	"dirsync": {unix.MS_DIRSYNC, 0}, "silent": {unix.MS_SILENT, 0}, "loud": {0, unix.MS_SILENT},
	"noatime": {unix.MS_NOATIME, 0}, "atime": {0, unix.MS_NOATIME},
	"nodiratime": {unix.MS_NODIRATIME, 0}, "diratime": {0, unix.MS_NODIRATIME},
	"relatime": {unix.MS_RELATIME, 0}, "norelatime": {0, unix.MS_RELATIME},
	"strictatime": {unix.MS_STRICTATIME, 0}, "nostrictatime": {0, unix.MS_STRICTATIME},
	"lazytime": {unix.MS_LAZYTIME, 0}, "nolazytime": {0, unix.MS_LAZYTIME},
	"nosymfollow": {unix.MS_NOSYMFOLLOW, 0},
	"defaults":    {0, 0},
}

// mountRefused are options of mount(8) that mean something else than mounting
// the file system on a device.
var mountRefused = map[string]string{
	"bind": "use mount(8)", "rbind": "use mount(8)", "move": "use mount(8)", "remount": "use: mount -o remount,… DIR",
	"loop": "dmfuse makes the loop device itself", "offset": "use NAME:PARTITION", "sizelimit": "use NAME:PARTITION",
}

// mountFlags splits options into the flags of mount(2) and what is left for
// the file system.
func mountFlags(options []string) (flags uintptr, rest []string, err error) {
	for _, o := range options {
		word, _, _ := strings.Cut(o, "=")
		if why, ok := mountRefused[word]; ok {
			return 0, nil, usagef("-o %s is not possible here: %s", o, why)
		}
		if f, ok := mountWords[o]; ok {
			flags = flags&^f.clear | f.set
		} else if o != "" {
			rest = append(rest, o)
		}
	}
	return flags, rest, nil
}
