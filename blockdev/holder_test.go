package blockdev

import (
	"errors"
	"os"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestUnescape(t *testing.T) {
	for text, want := range map[string]string{
		"/mnt": "/mnt", `/a\040b`: "/a b", `\134`: `\`, `/x\04`: `/x\04`, `/x\999`: `/x\999`, `\011\012`: "\t\n", "": "",
	} {
		if got := unescape(text); got != want {
			t.Errorf("%q: %q, expected %q", text, got, want)
		}
	}
}

func FuzzUnescape(f *testing.F) {
	f.Add(`/a\040b\`)
	f.Fuzz(func(t *testing.T, text string) {
		if got := unescape(text); len(got) > len(text) {
			t.Errorf("%q became %q", text, got)
		}
	})
}

func TestMayHang(t *testing.T) {
	if mayHang("/", ID{Kind: IDFile, A: 1}) {
		t.Error("the root file system is asked over a network?")
	}
	seen := false
	eachMount(func(number, point, fsType string) { seen = seen || point == "/" && number != "" && fsType != "" })
	if !seen {
		t.Error("no root in the list of mounts")
	}
}

func TestInUseError(t *testing.T) {
	err := error(&InUseError{Path: "/x", Err: unix.EAGAIN})
	if Kind(err) != ErrBusy || !errors.Is(err, unix.EAGAIN) || err.Error() != "/x is in use: another process, which could not be found" {
		t.Error(err)
	}
}

// A process that has the file open is found by what it has open, not by a path.
func TestOpenBy(t *testing.T) {
	path := testFile(t, 1<<20)
	_, id, err := identify(path)
	if err != nil {
		t.Fatal(err)
	}
	stop, err := qemuIO(t, "-r", "-f", "raw", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".moved"); err != nil {
		t.Fatal(err)
	}
	found := openBy(id)
	if len(found) != 1 || found[0].name != "qemu-io" || !found[0].locked {
		t.Errorf("found %v", found)
	}
	stop()
	if found := openBy(id); len(found) != 0 {
		t.Errorf("found %v after its end", found)
	}
}
