package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/replay"
	"github.com/spf13/cobra"
)

// replayOptions are the flags of replay.
type replayOptions struct {
	from    int
	to      string
	list    bool
	fsck    string
	scratch string
	first   bool

	enumerate bool
	bound     int
	tear      int64
	sample    uint64
	seed      string
	into      string
}

func newReplayCommand(a *app) *cobra.Command {
	var o replayOptions
	cmd := &cobra.Command{
		Use:   "replay LOG [DEV]",
		Short: "Do the writes of a log-writes log again, or go through its power cuts",
		Long: `Do what a log of the target log-writes has on DEV, a file or block device with
the content that the logged device had at the beginning: what DEV holds where
the log wrote is written over. No daemon is needed.

With --fsck a command is run after each flush and each mark; {} in it stands for
the device, as does $DEV. It sees DEV itself and must not write to it, or with
--scratch a copy that it may write to. $DMFUSE_ENTRY is the number of the entry
and $DMFUSE_MARK the last mark.

With --enumerate DEV is only read. For each moment at which the power could have
gone there are many contents that the device could have had: writes that no flush
had made durable are kept, lost, or reordered, and torn if you say so. The command
is run on a scratch copy of each; the seed that is printed makes it again, with
--seed.`,
		Example: `  dmfuse replay log.img --list
  dmfuse replay log.img disk.img --to mkfs
  dmfuse replay log.img disk.img --fsck 'fsck.ext4 -fn {}' --scratch /tmp
  dmfuse replay log.img disk.img --enumerate --tear 512 --fsck 'fsck.ext4 -fy {} || test $? -eq 1'
  dmfuse replay log.img disk.img --seed 12:3f --into cut.img`,
		Args: asUsage(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(cmd, len(args)); err != nil {
				return err
			}
			return a.replay(cmd.Context(), args, o)
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.from, "from", 0, "the first entry, as --list numbers them")
	f.StringVar(&o.to, "to", "", "the last entry: a number, or the text of a mark (mark:TEXT for one that is a number)")
	f.BoolVar(&o.list, "list", false, "print the entries and change nothing")
	f.StringVar(&o.fsck, "fsck", "", "the shell command `CMD` that checks the device")
	f.StringVar(&o.scratch, "scratch", "", "make copies for CMD in this folder (--enumerate: default $TMPDIR or /tmp)")
	f.BoolVar(&o.first, "first", false, "stop at the first check that fails, and keep its copy")
	f.BoolVar(&o.enumerate, "enumerate", false, "go through the contents that power cuts can leave")
	f.IntVar(&o.bound, "bound", 32, "at most so many contents of each power cut; beyond that they are sampled")
	f.Int64Var(&o.tear, "tear", 0, "writes tear into pieces of 512 or 4096 bytes (default: they do not)")
	f.Uint64Var(&o.sample, "sample", 1, "another number samples other contents")
	f.StringVar(&o.seed, "seed", "", "make only the content with this seed; --tear as it was")
	f.StringVar(&o.into, "into", "", "with --seed: write the content to this new file")
	return cmd
}

// check refuses flags that do not go together.
func (o *replayOptions) check(cmd *cobra.Command, args int) error {
	given := cmd.Flags().Changed
	states := o.enumerate || o.seed != ""
	switch {
	case args == 1 && !o.list:
		return usagef("DEV is missing: give the device that the log is replayed on, or --list")
	case o.list && (states || o.fsck != ""):
		return usagef("--list prints entries and does nothing else")
	case o.enumerate && o.seed != "":
		return usagef("--enumerate goes through all contents, --seed makes one: give one of the two")
	case states && (given("from") || given("to")):
		return usagef("--from and --to cannot be had with --enumerate or --seed: what is durable follows from the whole log")
	case !states && (given("bound") || given("tear") || given("sample")):
		return usagef("--bound, --tear and --sample belong to --enumerate")
	case o.into != "" && o.seed == "":
		return usagef("--into needs --seed: it writes one content")
	case o.seed != "" && o.into == "" && o.fsck == "":
		return usagef("--seed needs --fsck, to check the content, or --into, to keep it")
	case o.tear != 0 && o.tear != 512 && o.tear != 4096:
		return usagef("--tear %d: writes tear into pieces of 512 or 4096 bytes", o.tear)
	case o.bound < 1:
		return usagef("--bound %d: at least 1", o.bound)
	case o.scratch != "" && o.fsck == "" && !states:
		return usagef("--scratch is where copies for --fsck are made")
	case o.first && o.fsck == "":
		return usagef("--first needs --fsck")
	}
	return nil
}

// replayer is a log that is open, and where to.
type replayer struct {
	a    *app
	o    replayOptions
	pool *blockdev.Pool
	log  *replay.Log
	path string // of DEV

	checks []checkResult
	failed int
}

func (a *app) replay(ctx context.Context, args []string, o replayOptions) error {
	r := &replayer{a: a, o: o, pool: blockdev.NewPool(blockdev.PoolOptions{})}
	dev, err := r.pool.Open(args[0], false)
	if err != nil {
		return fail(exitCode(err), fmt.Errorf("the log cannot be read: %w", err), "if it is the log of a device that exists, remove or suspend that first; a log is complete when its device is removed")
	}
	defer dev.Close()
	if r.log, err = replay.Read(dev); err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	if o.list {
		return r.list(args[0])
	}
	p, err := r.device(args[1], dev)
	if err != nil {
		return err
	}
	r.path = p.path
	if o.enumerate || o.seed != "" {
		return r.states(ctx)
	}
	return r.run(ctx)
}

// device looks at DEV: nobody else may use it, and it must be large enough.
func (r *replayer) device(word string, log *blockdev.Handle) (place, error) {
	path, err := cleanAbs(word)
	if err != nil {
		return place{}, err
	}
	p, err := fileAt(path)
	if err != nil {
		return p, err
	}
	dev, err := r.pool.Open(p.path, false)
	if err != nil {
		return p, err
	}
	defer dev.Close()
	if dev.ID() == log.ID() {
		return p, usagef("%s is the log itself", word)
	}
	if r.o.enumerate || r.o.seed != "" {
		return p, r.fits(p, 0, len(r.log.Entries()))
	}
	users, err := (&session{a: r.a}).writersOf(p)
	if err != nil {
		return p, err
	}
	if len(users) > 0 {
		return p, fail(exitBusy, fmt.Errorf("%s is in use: %s", p.path, strings.Join(users, ", ")), "unmount or detach it first; nothing was written")
	}
	return p, nil
}

// fits refuses a device that some entry does not fit on.
func (r *replayer) fits(p place, from, end int) error {
	if need := r.log.Need(from, end); need > p.size {
		return fail(exitFailed, fmt.Errorf("%s has %d bytes, the log writes up to byte %d", p.path, p.size, need), fmt.Sprintf("nothing was written; a file is made large enough by: truncate -s %d %s", need, shellQuote(p.path)))
	}
	return nil
}

// span is the entries that --from and --to say.
func (r *replayer) span() (from, end int, err error) {
	n := len(r.log.Entries())
	end = n
	if text, mark := strings.CutPrefix(r.o.to, "mark:"); r.o.to != "" {
		last, nerr := strconv.Atoi(r.o.to)
		if mark || nerr != nil {
			if last = r.log.FindMark(text); last < 0 {
				return 0, 0, fail(exitMissing, fmt.Errorf("the log has no mark %q", text), "see them with: dmfuse replay LOG --list")
			}
		}
		if last < 0 || last >= n {
			return 0, 0, usagef("--to %d: the log has %d entries, numbered from 0", last, n)
		}
		end = last + 1
	}
	if r.o.from < 0 || r.o.from > end {
		return 0, 0, usagef("--from %d: the entries end at number %d", r.o.from, end-1)
	}
	return r.o.from, end, nil
}

// replayEntry is an entry as --list -J prints it.
type replayEntry struct {
	Index  int    `json:"index"`
	Kind   string `json:"kind"`
	Flags  string `json:"flags,omitempty"`
	Offset int64  `json:"offset_bytes"`
	Length int64  `json:"length_bytes"`
	Mark   string `json:"mark,omitempty"`
}

// list prints the entries.
func (r *replayer) list(path string) error {
	from, end, err := r.span()
	if err != nil {
		return err
	}
	list := []replayEntry{}
	var rows [][]string
	for i := from; i < end; i++ {
		e := r.log.Entries()[i]
		x := replayEntry{Index: i, Kind: string(replay.KindOf(e)), Flags: e.Flags.String(), Offset: e.Offset, Length: e.Length, Mark: e.Mark}
		list = append(list, x)
		row := []string{strconv.Itoa(i), x.Kind, x.Flags, "", "", printable(x.Mark)}
		if x.Length > 0 {
			row[3], row[4] = strconv.FormatInt(x.Offset/512, 10), strconv.FormatInt(x.Length/512, 10)
		}
		rows = append(rows, row)
	}
	if r.a.json {
		return r.a.printJSON(struct {
			Log       string        `json:"log"`
			BlockSize int           `json:"block_size_bytes"`
			Entries   []replayEntry `json:"entries"`
		}{path, r.log.BlockSize(), list})
	}
	return r.a.printTable([]string{"ENTRY", "KIND", "FLAGS", "SECTOR", "SECTORS", "MARK"}, rows)
}
