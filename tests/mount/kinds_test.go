package mount

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmfuse/dmfuse/tests/harness"
	"github.com/dmfuse/dmfuse/tests/harness/model"
)

// size is that of all devices here: whole stripes, no whole number of chunks of
// 64 KiB, and no whole number of pages.
const size = (4<<20/model.SectorSize/48*48 - 48) * model.SectorSize

// kinds are the devices that every test of a file is repeated on. Each makes a
// device of this name that holds content, size bytes.
var kinds = map[string]func(t *testing.T, d *harness.Daemon, name string, content []byte){
	"linear": func(t *testing.T, d *harness.Daemon, name string, content []byte) {
		half := len(content) / 2
		a := put(t, d, name+"-a", content[:half])
		b := put(t, d, name+"-b", append(make([]byte, 512), content[half:]...)) // from its second sector on
		table(d, name, fmt.Sprintf("0 %d linear %s 0\n%d %d linear %s 1", half/512, a, half/512, half/512, b))
	},
	"striped": func(t *testing.T, d *harness.Daemon, name string, content []byte) {
		const n, chunk = 3, 16 * 512
		var parts [n][]byte
		for at := 0; at < len(content); at += chunk {
			parts[at/chunk%n] = append(parts[at/chunk%n], content[at:at+chunk]...)
		}
		line := fmt.Sprintf("0 %d striped %d 16", len(content)/512, n)
		for i, p := range parts {
			line += " " + put(t, d, fmt.Sprintf("%s-%d", name, i), p) + " 0"
		}
		table(d, name, line)
	},
	"origin": func(t *testing.T, d *harness.Daemon, name string, content []byte) {
		file := put(t, d, name, content)
		for i, chunk := range []int{8, 128} {
			view := fmt.Sprintf("%s-view%d", name, i)
			table(d, view, fmt.Sprintf("0 %d snapshot %s %s P %d", len(content)/512, file, d.Image(view+".cow", 3*size), chunk))
		}
		table(d, name, fmt.Sprintf("0 %d snapshot-origin %s", len(content)/512, file))
	},
	"snapshot":         snapshotKind("P"),
	"snapshot in RAM":  snapshotKind("N"),
	"on another":       onAnother,
	"linear, direct":   nil, // as linear, by a daemon that opens files with O_DIRECT
	"snapshot, direct": nil,
}

func snapshotKind(store string) func(t *testing.T, d *harness.Daemon, name string, content []byte) {
	return func(t *testing.T, d *harness.Daemon, name string, content []byte) {
		table(d, name, fmt.Sprintf("0 %d snapshot %s %s %s 16", len(content)/512, put(t, d, name, content), d.Image(name+".cow", 3*size), store))
	}
}

// onAnother is a part of a device that lies on a snapshot.
func onAnother(t *testing.T, d *harness.Daemon, name string, content []byte) {
	table(d, name+"-low", fmt.Sprintf("0 %d snapshot %s %s P 8", len(content)/512+7,
		put(t, d, name, append(make([]byte, 7*512), content...)), d.Image(name+".cow", 3*size)))
	table(d, name, fmt.Sprintf("0 %d linear %s 7", len(content)/512, d.Dev(name+"-low")))
}

// onEach runs a test on each kind of device. The file holds content at the
// start; what the test leaves in content must be in the file at its end, and
// still after the daemon was killed and started again.
func onEach(t *testing.T, test func(t *testing.T, path string, content []byte)) {
	for kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			var args []string
			like, direct := strings.CutSuffix(kind, ", direct")
			if direct {
				args = []string{"--direct"}
			}
			d := harness.Start(t, args...)
			content := model.Pattern(1, 0, size/model.SectorSize)
			kinds[like](t, d, "vol", content)
			test(t, d.Dev("vol"), content)
			want(t, d.Dev("vol"), content)
			if kind == "origin" {
				want(t, d.Dev("vol-view0"), model.Pattern(1, 0, size/model.SectorSize))
				want(t, d.Dev("vol-view1"), model.Pattern(1, 0, size/model.SectorSize))
			}
			if kind == "snapshot in RAM" {
				return // ends with the daemon
			}
			d.Kill()
			d.Start()
			want(t, d.Dev("vol"), content)
			d.Stop()
		})
	}
}

func put(t *testing.T, d *harness.Daemon, name string, content []byte) string {
	t.Helper()
	path := d.Path(name + ".img")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// table makes a device.
func table(d *harness.Daemon, name, text string) { d.Must("create", name, "--table", text) }

// want compares a file with what it must hold.
func want(t *testing.T, path string, content []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
		return
	}
	if len(got) != len(content) {
		t.Errorf("%s: %d bytes, want %d", path, len(got), len(content))
		return
	}
	if !bytes.Equal(got, content) {
		at := 0
		for got[at] == content[at] {
			at++
		}
		t.Errorf("%s: differs from byte %d on", path, at)
	}
}

// open opens a file for the time of a test.
func open(t *testing.T, path string, flags int) int {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("open %s: %v", path, err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// opened opens a file for the time of fn.
func opened(t *testing.T, path string, flags int, fn func(fd int)) {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("open %s: %v", path, err)
	}
	defer unix.Close(fd)
	fn(fd)
}
