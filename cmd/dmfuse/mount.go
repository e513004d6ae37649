package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/dmfuse/dmfuse/control"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func newMountCommand(a *app) *cobra.Command {
	var options []string
	cmd := &cobra.Command{
		Use:   "mount NAME[:PARTITION] DIR",
		Short: "Mount the file system on a device (root)",
		Long: `Mount the file system on a device of dmfuse, or on a partition of it, through a
loop device that goes away with the mount. A snapshot of XFS is mounted with
nouuid, a read-only device without replay of its journal.`,
		Example: `  dmfuse mount disk:1 /mnt
  dmfuse mount before-upgrade /mnt -o ro,noatime`,
		Args: asUsage(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.mount(cmd.Context(), args[0], args[1], options)
		},
	}
	cmd.Flags().StringSliceVarP(&options, "options", "o", nil, "mount options")
	return cmd
}

// mounted is the answer of mount.
type mounted struct {
	Name      string `json:"name"`
	Partition int    `json:"partition,omitempty"`
	Loop      string `json:"loop"`
	Source    string `json:"source"`
	Dir       string `json:"dir"`
	Type      string `json:"type"`
	Options   string `json:"options"`
}

func (a *app) mount(ctx context.Context, word, dir string, options []string) error {
	dir, err := mountPoint(dir)
	if err != nil {
		return err
	}
	s, err := a.session(ctx)
	if err != nil {
		return err
	}
	if err := s.load(ctx); err != nil {
		return err
	}
	m, part, err := s.deviceAndPartition(ctx, word)
	if err != nil {
		return err
	}
	flags, rest, err := mountFlags(options)
	if err != nil {
		return err
	}
	readOnly := m.ReadOnly || flags&unix.MS_RDONLY != 0
	if err := s.checkMountable(m, part, readOnly); err != nil {
		return err
	}
	l, parts, err := attachDevice(m, loopOptions{readOnly: m.ReadOnly, partScan: part != 0, autoClear: true})
	if err != nil {
		return err
	}
	defer l.release() // from here on the mount keeps it, or it goes
	source := l.path()
	if part != 0 {
		i := slices.IndexFunc(parts, func(p loopPart) bool { return p.number == part })
		if i < 0 {
			return noPartition(m, part, parts)
		}
		source = parts[i].path
	}
	found, err := s.checkContents(m, source, part)
	if err != nil {
		return err
	}
	if m.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	rest = addOptions(found.Format, m, s.onSnapshot(m), rest)
	if err := unix.Mount(source, dir, found.Format, flags, strings.Join(rest, ",")); err != nil {
		return mountFailed(m, found, dir, rest, err)
	}
	return a.sayMounted(mounted{m.Name, part, l.path(), source, dir, found.Format, strings.Join(rest, ",")})
}

func (a *app) sayMounted(m mounted) error {
	if a.json {
		return a.printJSON(m)
	}
	return nil
}

// mountPoint checks the directory to mount on.
func mountPoint(dir string) (string, error) {
	abs, err := cleanAbs(dir)
	if err != nil {
		return "", err
	}
	fi, err := os.Stat(abs)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", fail(exitFailed, fmt.Errorf("%s does not exist", abs), "make it first: mkdir "+shellQuote(abs))
	case err != nil:
		return "", err
	case !fi.IsDir():
		return "", failf(exitFailed, "%s is no directory to mount on", abs)
	}
	return abs, nil
}

// deviceAndPartition reads NAME[:PARTITION]. A name may hold a colon itself.
func (s *session) deviceAndPartition(ctx context.Context, word string) (mapped, int, error) {
	m, err := s.device(ctx, word)
	if err == nil || errorCode(err) != control.CodeNotFound {
		return m, 0, err
	}
	at := strings.LastIndexByte(word, ':')
	if at < 0 {
		return m, 0, err
	}
	n, bad := strconv.Atoi(word[at+1:])
	if bad != nil || n < 1 || n > 999 {
		return m, 0, usagef("%q: a partition is a number from 1", word)
	}
	m, err = s.device(ctx, word[:at])
	return m, n, err
}

// checkMountable refuses a second mount beside one that writes: two mounts
// through two loop devices know nothing of each other.
func (s *session) checkMountable(m mapped, part int, readOnly bool) error {
	loops, err := loopsOn(m.Path)
	if err != nil {
		return err
	}
	mounts, err := readMounts()
	if err != nil {
		return err
	}
	for _, l := range loops {
		nodes := nodeMap(blockTree(l.name()))
		for _, at := range mountsOf(mounts, nodes) {
			other := partitionOf(l, at.source)
			if (part == 0 || other == 0 || part == other) && !(readOnly && at.readOnly) {
				return fail(exitBusy, fmt.Errorf("%s is mounted at %s already; a second mount would not see what the first writes, and destroy it", m.Name, at.point),
					"show it in a second place with: mount --bind "+shellQuote(at.point)+" DIR")
			}
		}
	}
	return nil
}

// partitionOf is the number of the partition that a node of the loop device
// stands for, 0 for the whole.
func partitionOf(l loopDevice, node string) int {
	n, _ := strconv.Atoi(strings.TrimPrefix(node, l.path()+"p"))
	return n
}

// noPartition says which partitions there are.
func noPartition(m mapped, part int, parts []loopPart) error {
	if len(parts) == 0 {
		return fail(exitFailed, fmt.Errorf("%s has no partition %d: there is no partition table on it", m.Name, part), "mount the whole: dmfuse mount "+shellQuote(m.Name)+" DIR")
	}
	var have []string
	for _, p := range parts {
		have = append(have, fmt.Sprintf("%d (%s)", p.number, formatSize(p.size)))
	}
	return failf(exitFailed, "%s has no partition %d; it has %s", m.Name, part, strings.Join(have, ", "))
}

// checkContents looks at what is to be mounted and refuses what is no file
// system, or one that must not be mounted here.
func (s *session) checkContents(m mapped, source string, part int) (contents, error) {
	p, err := fileAt(source)
	if err != nil {
		return contents{}, err
	}
	c, err := p.probe()
	if err != nil {
		return c, err
	}
	where := m.Name
	if part != 0 {
		where = fmt.Sprintf("partition %d of %s", part, m.Name)
	}
	switch {
	case c.Class == classFileSystem && c.Format == "btrfs":
		return c, checkBtrfs(where, c.UUID)
	case c.Class == classFileSystem:
		return c, nil
	case c.Table != "":
		return c, fail(exitFailed, fmt.Errorf("%s is %s: choose a partition%s", where, c.describe(), partitionList(c.Partitions)),
			"for example: dmfuse mount "+shellQuote(m.Name)+":1 DIR")
	case c.Class == classUnknown:
		return c, failf(exitFailed, "no file system is found on %s", where)
	}
	return c, fail(exitFailed, fmt.Errorf("%s holds %s, which cannot be mounted itself", where, c.describe()),
		"make a loop device of it and go on with the tool for that: dmfuse attach "+shellQuote(m.Name))
}

func partitionList(parts []partition) string {
	var have []string
	for _, p := range parts {
		if !p.Extended {
			have = append(have, fmt.Sprintf("%d (%s)", p.Number, formatSize(p.SizeBytes)))
		}
	}
	if len(have) == 0 {
		return ""
	}
	return ": " + strings.Join(have, ", ")
}

// checkBtrfs refuses a btrfs whose uuid is mounted: the kernel takes the two
// for parts of one file system and mixes them up.
func checkBtrfs(where, uuid string) error {
	if _, err := os.Stat("/sys/fs/btrfs/" + uuid); err != nil {
		return nil
	}
	return fail(exitBusy, fmt.Errorf("the btrfs on %s has the uuid %s of one that is mounted: the kernel would take both for one and destroy it", where, uuid),
		"unmount the other first, or give this one a new uuid with: dmfuse attach, btrfstune -u")
}

// onSnapshot says whether a device is a snapshot or stands on one.
func (s *session) onSnapshot(m mapped) bool {
	if m.isSnapshot() {
		return true
	}
	for _, l := range m.lines { // tables have no loops
		for _, word := range l.Args {
			if below, ok := s.deviceOf(word); ok && below.Name != m.Name && s.onSnapshot(below) {
				return true
			}
		}
	}
	return false
}

// addOptions adds the options that a view of a disk needs.
func addOptions(format string, m mapped, view bool, options []string) []string {
	if format == "xfs" && view {
		options = addOption(options, "nouuid") // the origin has the same uuid
	}
	if m.ReadOnly { // the journal cannot be replayed
		switch format {
		case "xfs", "f2fs":
			options = addOption(options, "norecovery")
		case "ext3", "ext4":
			options = addOption(options, "noload")
		case "btrfs":
			options = addOption(options, "rescue=nologreplay")
		}
	}
	return options
}

func addOption(options []string, o string) []string {
	if slices.Contains(options, o) {
		return options
	}
	return append(options, o)
}

// mountFailed explains an errno of mount(2).
func mountFailed(m mapped, c contents, dir string, options []string, err error) error {
	err = fmt.Errorf("the %s file system on %s cannot be mounted at %s: %w", c.Format, m.Name, dir, err)
	next := "the kernel says more: dmesg | tail"
	switch {
	case errors.Is(err, unix.ENODEV):
		next = "the kernel has no " + c.Format
	case errors.Is(err, unix.EPERM):
		next = "mounting needs root"
	case errors.Is(err, unix.EBUSY):
		return fail(exitBusy, err, "something is mounted from it, or at the directory, already")
	case errors.Is(err, unix.EINVAL) && len(options) > 0:
		next = "one of the options " + strings.Join(options, ",") + " is wrong, or the file system is damaged; " + next
	}
	return fail(exitFailed, err, next)
}
