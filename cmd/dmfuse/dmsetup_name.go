package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/dmfuse/dmfuse/control"
)

// Names of devices as dmsetup takes them: mangled when they hold characters
// that udev cannot have in a file name, and given as a path if one likes.

// mangling is how names and uuids are changed on the way to the daemon.
type mangling string

const (
	mangleNone mangling = "none" // as they are
	mangleAuto mangling = "auto" // unless they are mangled already
	mangleHex  mangling = "hex"  // always
)

// maxName and maxUUID are the longest name and uuid (kernel: dm-ioctl.h).
const (
	maxName = 127
	maxUUID = 128
)

// plainChar says whether a byte stands for itself in a mangled name.
func plainChar(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || strings.IndexByte("#+-.:=@_", c) >= 0
}

// mangledAt says whether \xNN stands at s[i:].
func mangledAt(s string, i int) bool {
	isHex := func(c byte) bool { return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F' }
	return i+3 < len(s) && s[i] == '\\' && s[i+1] == 'x' && isHex(s[i+2]) && isHex(s[i+3])
}

// mangle makes the form that is sent. what is "name" or "UUID", for messages.
func (m mangling) mangle(s, what string, limit int) (string, error) {
	if m == mangleNone {
		return s, nil
	}
	var b strings.Builder
	raw, done := false, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case m == mangleAuto && mangledAt(s, i):
			if strings.EqualFold(s[i:i+4], `\x5c`) {
				return "", fmt.Errorf("The %s \"%s\" seems to be mangled more than once. This is not allowed in auto mode.", what, s)
			}
			done = true
			b.WriteString(s[i : i+4])
			i += 3
		case plainChar(c):
			b.WriteByte(c)
		default:
			raw = true
			fmt.Fprintf(&b, `\x%02x`, c)
		}
		if raw && done {
			return "", fmt.Errorf("The %s \"%s\" contains mixed mangled and unmangled characters or it's already mangled improperly.", what, s)
		}
	}
	if b.Len() > limit {
		return "", fmt.Errorf("%s \"%s\" too long", strings.ToUpper(what[:1])+what[1:], s)
	}
	return b.String(), nil
}

// unmangle is the form that is shown.
func unmangle(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if mangledAt(s, i) {
			var c byte
			if _, err := fmt.Sscanf(s[i+2:i+4], "%02x", &c); err == nil {
				b.WriteByte(c)
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// show is a name or uuid as it is printed.
func (m mangling) show(s string) string {
	if m == mangleNone {
		return s
	}
	return unmangle(s)
}

// newName is the name for a device that is to be made or renamed to.
func (d *dm) newName(name string) (string, error) {
	if d.people && name == "" {
		return "", errEmptyName()
	}
	if strings.Contains(name, "/") {
		return "", d.plain(exitUsage, "Name \"%s\" invalid. It contains \"/\".", name)
	}
	if len(name) > maxName {
		return "", d.plain(exitUsage, "Name \"%s\" too long.", name)
	}
	out, err := d.mangling.mangle(name, "name", maxName)
	if err != nil {
		return "", d.plain(exitUsage, "%v", err)
	}
	return out, nil
}

// newUUID is the uuid for a device.
func (d *dm) newUUID(uuid string) (string, error) {
	out, err := d.mangling.mangle(uuid, "UUID", maxUUID)
	if err != nil {
		return "", d.plain(exitUsage, "%v", err)
	}
	return out, nil
}

// argKey finds the device an argument names: by name, or by a path to its file.
// Without an argument -u, or -j with -m, name it.
func (d *dm) argKey(arg string, given bool) (control.Key, error) {
	switch {
	case d.people && given && arg == "":
		return control.Key{}, errEmptyName()
	case d.people && !given && d.o.on("uuid") && d.o.value["uuid"] == "":
		return control.Key{}, usagef("the uuid is empty")
	case given && strings.Contains(arg, "/"):
		return d.pathKey(arg)
	case given:
		name, err := d.mangling.mangle(arg, "name", maxName)
		if err != nil {
			return control.Key{}, d.plain(exitUsage, "%v", err)
		}
		return control.ByName(name), nil
	case d.o.on("uuid"):
		uuid, err := d.newUUID(d.o.value["uuid"])
		return control.ByUUID(uuid), err
	case d.o.on("major"):
		return control.ByMinor(atoi(d.o.value["minor"])), nil
	}
	return control.Key{}, d.plain(exitUsage, "No device specified.")
}

// pathKey is the device of a path: below the mount, below /dev/mapper,
// /dev/dm-N, or a link to one of them.
func (d *dm) pathKey(path string) (control.Key, error) {
	for _, p := range []string{path, resolved(path)} {
		dir, base := filepath.Split(filepath.Clean(p))
		dir = filepath.Clean(dir)
		var minor int
		switch {
		case d.mount != "" && dir == d.mount, dir == d.devDir+"/mapper":
			return control.ByName(base), nil
		case dir == d.devDir && strings.HasPrefix(base, "dm-"):
			if n, err := fmt.Sscanf(base, "dm-%d", &minor); n == 1 && err == nil {
				return control.ByMinor(minor), nil
			}
		}
	}
	return control.Key{}, d.plain(exitMissing, "Device %s not found", path)
}

// resolved follows links; a path that cannot be followed is itself, absolute.
func resolved(path string) string {
	if p, err := filepath.EvalSymlinks(path); err == nil {
		path = p
	}
	if p, err := filepath.Abs(path); err == nil {
		return p
	}
	return path
}

// devDirFrom is the directory of device nodes: /dev, or DM_DEV_DIR.
func devDirFrom(env func(string) string) string {
	if dir := env("DM_DEV_DIR"); dir != "" {
		return filepath.Clean(dir)
	}
	return "/dev"
}

// exists says whether there is something at path.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
