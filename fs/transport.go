package fs

import (
	"fmt"
	"runtime"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/dmfuse/dmfuse/blockdev"
)

// Transport is a way by which requests of the kernel arrive. What they do is
// the same with each.
type Transport string

// Ways by which requests arrive.
const (
	// TransportAuto is the one that suits most: TransportDev.
	TransportAuto Transport = "auto"
	// TransportURing is FUSE over io_uring (Linux 6.14), where root has switched it
	// on (/sys/module/fuse/parameters/enable_uring); TransportDev elsewhere.
	TransportURing Transport = "uring"
	// TransportDev is a loop of our own over /dev/fuse with several readers.
	TransportDev Transport = "dev"
	// TransportGoFuse is go-fuse's Server.
	TransportGoFuse Transport = "gofuse"
)

// Transports lists what [ParseTransport] takes.
var Transports = [...]Transport{TransportAuto, TransportURing, TransportDev, TransportGoFuse}

// ParseTransport returns the transport of this name; an empty one is
// TransportAuto, any other [blockdev.ErrInvalid].
func ParseTransport(name string) (Transport, error) {
	if name == "" {
		return TransportAuto, nil
	}
	for _, t := range Transports {
		if name == string(t) {
			return t, nil
		}
	}
	return "", fmt.Errorf("%w: transport %q: expected one of %v", blockdev.ErrInvalid, name, Transports)
}

// loop is a descriptor that is mounted, with INIT answered.
type loop struct {
	transport Transport
	readers   int
	// serve answers requests until the mount is gone and all are answered, and
	// closes the descriptor.
	serve func()
}

// newLoop answers INIT on fd, and closes fd when it fails.
func newLoop(f *FileSystem, fd int, o Options) (loop, error) {
	t, err := ParseTransport(string(o.Transport))
	if err != nil {
		return loop{}, err
	}
	if t == TransportGoFuse {
		n := min(max(runtime.GOMAXPROCS(0), 2), 16) // as many as it takes
		// The magic name makes go-fuse take over a descriptor that is mounted.
		s, err := fuse.NewServer(f, fmt.Sprintf("/dev/fd/%d", fd), f.FuseOptions(o))
		if err != nil {
			return loop{}, err
		}
		return loop{t, n, s.Serve}, nil
	}
	if t == TransportURing {
		return newRingLoop(f, fd, o)
	}
	l, err := newDevLoop(f, fd, o)
	if err != nil {
		return loop{}, err
	}
	return loop{TransportDev, len(l.fds), l.Serve}, nil
}
