package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/sirupsen/logrus"

	"github.com/dmfuse/dmfuse/blockdev"
)

// subtype makes the type of the mount "fuse.dmfuse": by it a mount of ours is
// recognised.
const subtype = "dmfuse"

// Options say where and how to mount. The zero value of a field is its default.
type Options struct {
	// Dir is the mount point. It is made when it is not there.
	Dir string
	// FsName is the first word in /proc/mounts; default "dmfuse".
	FsName string
	// AllowOther lets users other than the owner of the mount in, as the modes
	// of the files say. A user who is not root needs user_allow_other in
	// /etc/fuse.conf for it.
	AllowOther bool
	// MaxBackground is how many requests of asynchronous I/O the kernel hands
	// out at a time, over all devices; default 4096. Without privileges the
	// kernel takes no more than /sys/module/fuse/parameters/max_user_bgreq.
	MaxBackground int
	// Transport is how requests arrive; default TransportAuto.
	Transport Transport
	// Log takes messages; default: none.
	Log logrus.FieldLogger
	// Debug logs every request at debug level.
	Debug bool

	rings ringHooks
}

const (
	maxRequest           = 1 << 20 // bytes of a read or write request
	defaultMaxBackground = 4096
)

func (o Options) withDefaults() Options {
	if o.FsName == "" {
		o.FsName = subtype
	}
	if o.MaxBackground == 0 {
		o.MaxBackground = defaultMaxBackground
	}
	if o.Log == nil {
		quiet := logrus.New()
		quiet.SetOutput(io.Discard)
		o.Log = quiet
	}
	return o
}

func (o Options) dirPerm() uint32 {
	if o.AllowOther {
		return 0755
	}
	return 0700
}

// FuseOptions returns what go-fuse is told. Asked of the kernel beyond go-fuse's
// defaults: a queue of direct requests side by side (ASYNC_DIO), and shared
// mappings of files without a page cache.
func (f *FileSystem) FuseOptions(o Options) *fuse.MountOptions {
	o = o.withDefaults()
	return &fuse.MountOptions{
		FsName:               o.FsName,
		Name:                 subtype,
		MaxBackground:        min(o.MaxBackground, 1<<16-1),
		CongestionThreshold:  min(o.MaxBackground, 1<<16-1),
		MaxWrite:             maxRequest,
		ExtraCapabilities:    fuse.CAP_ASYNC_DIO | fuse.CAP_DIRECT_IO_ALLOW_MMAP,
		DisabledCapabilities: fuse.CAP_PASSTHROUGH,
		DisableReadDirPlus:   true, // nothing it brings may be kept
		DisableXAttrs:        true,
		DisableSplice:        true, // data lies in a buffer already; a pipe of 1 MiB is refused, with a line in the log
		Debug:                o.Debug,
		Logger:               newFuseLogger(o.Log),
		PanicHandler:         f.panicked,
	}
}

// Server is a mounted file system.
type Server struct {
	dir       string
	transport Transport
	readers   int
	done      chan struct{}
	dev       *devLoop // of a held mount; or nil
}

// Mount mounts the devices of src at o.Dir and serves them until Unmount. What
// a dead daemon left mounted there is cleared away; a living one is ErrBusy.
func Mount(src Source, o Options) (*Server, error) {
	o = o.withDefaults()
	dir, err := prepareDir(o)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", o.Dir, err)
	}
	l, err := mountLoop(src, dir, o)
	if errors.Is(err, errMountAnew) {
		o.Log.WithError(err).Warn("mounting once more: requests come over /dev/fuse")
		o.Transport = TransportDev
		l, err = mountLoop(src, dir, o)
	}
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	s := &Server{dir: dir, transport: l.transport, readers: l.readers, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		l.serve()
	}()
	return s, nil
}

// mountLoop mounts at dir and answers INIT.
func mountLoop(src Source, dir string, o Options) (loop, error) {
	fd, err := mountFuse(dir, o)
	if err != nil {
		return loop{}, err
	}
	l, err := newLoop(NewFileSystem(src, o), fd, o)
	if err != nil {
		_ = abortMount(dir)
	}
	return l, err
}

// Transport is how requests arrive, never TransportAuto.
func (s *Server) Transport() Transport { return s.transport }

// Readers is how many threads wait for requests, each inside a system call.
func (s *Server) Readers() int { return s.readers }

// Dir is the mount point, absolute and without links.
func (s *Server) Dir() string { return s.dir }

// Wait returns when the mount is gone and every request is answered.
func (s *Server) Wait() { <-s.done }

// Done is closed when Wait would return.
func (s *Server) Done() <-chan struct{} { return s.done }

// ErrElsewhere is the answer of Unmount when the mount is out of the tree and
// yet served: another mount namespace has a copy of it (a container that was
// started meanwhile), or requests do not end.
var ErrElsewhere = fmt.Errorf("%w: the mount is in use in another mount namespace, or requests are still inside", blockdev.ErrBusy)

// Unmount unmounts and waits for the requests inside. While files are open it
// tries again until ctx ends, and then returns ErrBusy: the mount goes on.
// When the mount is gone already it only waits; see [ErrElsewhere].
func (s *Server) Unmount(ctx context.Context) error {
	retry := time.NewTicker(20 * time.Millisecond)
	defer retry.Stop()
	for !s.gone() {
		err := unmountClean(s.dir)
		if err == nil || errors.Is(err, syscall.EINVAL) { // errno: umount's word for "nothing is mounted there"
			break
		}
		if blockdev.Kind(err) != blockdev.ErrBusy {
			return fmt.Errorf("unmount %s: %w", s.dir, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("unmount %s: %w", s.dir, err)
		case <-s.done:
			return nil
		case <-retry.C:
		}
	}
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("unmount %s: %w", s.dir, ErrElsewhere)
	}
}

// UnmountLazily takes the mount out of the tree at once; files that are open
// go on being served until they are closed. It does not wait for that.
func (s *Server) UnmountLazily() error {
	if s.gone() {
		return nil
	}
	if err := unmountLazily(s.dir); err != nil {
		return fmt.Errorf("unmount %s: %w", s.dir, err)
	}
	return nil
}

// Abort ends the connection to the kernel and takes the mount away: requests
// inside and all later ones fail at their callers. Only root can; for others it
// is UnmountLazily, and the connection ends with the process. It is for a
// process that must go while clients wait on it, and for one with threads that
// wait on its own mount, which nothing else ends.
func (s *Server) Abort() error {
	if s.gone() {
		return nil
	}
	if err := abortMount(s.dir); err != nil {
		return fmt.Errorf("abort %s: %w", s.dir, err)
	}
	return nil
}

func (s *Server) gone() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// prepareDir makes the mount point, clears a dead mount of ours away from it,
// and returns its path without links.
func prepareDir(o Options) (string, error) {
	abs, err := filepath.Abs(o.Dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(abs), 0755); err != nil {
		return "", err
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", err
	}
	dir := filepath.Join(parent, filepath.Base(abs))
	if err := clearStale(dir, o.Log); err != nil {
		return "", err
	}
	if err := os.Mkdir(dir, os.FileMode(o.dirPerm())); err != nil && !os.IsExist(err) {
		return "", err
	}
	dir, err = filepath.EvalSymlinks(dir)
	if err != nil {
		return "", err
	}
	var st syscall.Stat_t
	if err := syscall.Stat(dir, &st); err != nil {
		return "", err
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		return "", fmt.Errorf("%w: not a directory", blockdev.ErrNoDevice)
	}
	return dir, nil
}
