package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev"
)

// checkResult is how a check ended.
type checkResult struct {
	Entry  int    `json:"entry"`
	Mark   string `json:"mark,omitempty"`
	Seed   string `json:"seed,omitempty"`
	Kept   string `json:"kept,omitempty"` // a file that the check failed on
	Units  int    `json:"units,omitempty"`
	Exit   int    `json:"exit"`
	Output string `json:"output,omitempty"` // of a check that failed, the end of it
}

// outputBytes is how much of the output of a check is kept.
const outputBytes = 4096

// check runs the command on a device and prints how it ended. It says whether to
// go on.
func (r *replayer) check(ctx context.Context, path string, res checkResult) (bool, error) {
	cmd := exec.CommandContext(ctx, "sh", "-c", strings.ReplaceAll(r.o.fsck, "{}", shellQuote(path)))
	cmd.Env = append(os.Environ(), "DEV="+path, "DMFUSE_ENTRY="+strconv.Itoa(res.Entry), "DMFUSE_MARK="+res.Mark, "DMFUSE_SEED="+res.Seed)
	out, err := cmd.CombinedOutput()
	if cerr := ctx.Err(); cerr != nil {
		return false, fmt.Errorf("stopped during the check after entry %d: %w", res.Entry, cerr)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return false, fmt.Errorf("the check cannot be run: %w", err)
	}
	res.Exit = cmd.ProcessState.ExitCode()
	if err != nil {
		r.failed++
		res.Output = string(out[max(0, len(out)-outputBytes):])
	}
	r.checks = append(r.checks, res)
	if !r.a.json {
		if err := r.printCheck(res); err != nil {
			return false, err
		}
	}
	return err == nil || !r.o.first, nil
}

func (r *replayer) printCheck(res checkResult) error {
	var b strings.Builder
	if res.Seed != "" {
		fmt.Fprintf(&b, "seed %s, ", res.Seed)
	}
	fmt.Fprintf(&b, "entry %d", res.Entry)
	if res.Mark != "" {
		fmt.Fprintf(&b, ", mark %s", printable(res.Mark))
	}
	fmt.Fprintf(&b, ": exit %d\n", res.Exit)
	if res.Output != "" {
		b.WriteString("  " + strings.ReplaceAll(strings.TrimRight(res.Output, "\n"), "\n", "\n  ") + "\n")
	}
	_, err := fmt.Fprint(r.a.stdout, b.String())
	return err
}

// copyOf makes a copy of a device in a folder: sparse, and sharing blocks where
// the file system can.
func (r *replayer) copyOf(dev blockdev.Device, dir string) (path string, err error) {
	f, err := os.CreateTemp(dir, "dmfuse-replay-*")
	if err != nil {
		return "", err
	}
	path = f.Name()
	defer func() {
		if err != nil {
			_ = os.Remove(path)
		}
	}()
	err = f.Truncate(dev.Size())
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return "", err
	}
	to, err := r.pool.Open(path, true)
	if err != nil {
		return "", err
	}
	defer to.Close()
	return path, copySparse(to, dev)
}

// copySparse copies what is no hole to a device that holds zeros.
func copySparse(to, from blockdev.Device) error {
	size := from.Size()
	for off := int64(0); off < size; {
		n, hole, err := blockdev.Extent(from, off)
		if err != nil {
			return err
		}
		if !hole {
			if _, err := blockdev.CopyAll(to, off, from, off, n); err != nil {
				return err
			}
		}
		off += n
	}
	return nil
}
