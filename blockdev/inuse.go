package blockdev

import (
	"fmt"
	"strings"
)

// InUseError says that somebody else uses a file or block device in a way that
// excludes ours. It is of kind [ErrBusy].
type InUseError struct {
	Path   string
	Holder string // in words: "loop device /dev/loop3", "mounted on /mnt", "qemu-nbd (process 4711)"; empty if nobody was found
	PIDs   []int  // processes that have it open, as far as we may see them
	Err    error  // what the attempt met
}

func (e *InUseError) Error() string {
	holder := e.Holder
	if holder == "" {
		holder = "another process, which could not be found"
	}
	return fmt.Sprintf("%s is in use: %s", e.Path, holder)
}

// Unwrap gives [ErrBusy] and the cause.
func (e *InUseError) Unwrap() []error {
	if e.Err == nil {
		return []error{ErrBusy}
	}
	return []error{ErrBusy, e.Err}
}

// inUse is the error for a file that could not be had, with its holder if it
// can be found: a loop device, a mount or other use of a block device, or
// processes.
func inUse(path string, id ID, write bool, cause error) *InUseError {
	e := &InUseError{Path: path, Err: cause}
	var holders []string
	if loop := loopHolder(id, write); loop != "" {
		holders = append(holders, loop)
	}
	if id.Kind == IDBlock {
		holders = append(holders, blockHolders(id.A)...)
	}
	processes := openBy(id)
	for _, p := range processes {
		e.PIDs = append(e.PIDs, p.pid)
		holders = append(holders, p.String())
	}
	e.Holder = strings.Join(holders, ", ")
	return e
}
