package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"syscall"
	"time"
)

// options are the words of the command line.
type options struct {
	bin    string         // the program under test
	old    string         // another build of it to compare with; "" none
	mem    string         // directory in memory; "" none
	disk   string         // directory on a disk; "" none
	out    string         // where the reports go
	rows   *regexp.Regexp // which loads, by place/name
	who    *regexp.Regexp // which subjects
	rounds int
	each   time.Duration // most that one load runs on one subject
	size   int64         // bytes of the devices
	all    bool          // the loads that tell little more, too
	quick  bool
	check  bool
}

func parse(args []string, errs io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(errs)
	f.StringVar(&o.bin, "bin", "bin/dmfuse", "the program to measure")
	f.StringVar(&o.old, "old", "", "another build of the program, whose subjects get rows of their own")
	f.StringVar(&o.mem, "mem", "/dev/shm", "directory in memory, empty: leave out")
	f.StringVar(&o.disk, "disk", "/var/tmp", "directory on a disk, empty: leave out")
	f.StringVar(&o.out, "out", "bench-out", "directory of the reports")
	rows := f.String("rows", "", "only loads whose place/name matches, such as memory/4k-read")
	who := f.String("subjects", "", "only subjects whose name matches; go-fuse, the measure of all, is always there")
	f.IntVar(&o.rounds, "rounds", 3, "turns over all subjects")
	f.DurationVar(&o.each, "each", 350*time.Millisecond, "time of a load on a subject in a round")
	mib := f.Int64("size", 256, "MiB of each device")
	f.BoolVar(&o.all, "all", false, "more loads: 64k, depth 64, reads and writes mixed, four jobs; about half an hour")
	f.BoolVar(&o.quick, "quick", false, "one short round, in memory only")
	f.BoolVar(&o.check, "check", false, "exit status 1 when an aim is missed")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.size = *mib << 20
	if o.quick {
		o.rounds, o.each, o.disk = 1, 200*time.Millisecond, ""
	}
	var err error
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("unknown word %q", f.Arg(0))
	case o.rounds < 1 || o.each <= 0 || *mib < 1:
		return o, errors.New("rounds, each and size must be positive")
	}
	if o.rows, err = regexp.Compile(*rows); err != nil {
		return o, err
	}
	o.who, err = regexp.Compile(*who)
	return o, err
}

func main() {
	// The death signal of children follows the thread that started them.
	runtime.LockOSThread()
	if len(os.Args) == 4 && os.Args[1] == passthroughWord {
		exit(passthrough(os.Args[2], os.Args[3]))
	}
	if len(os.Args) == 4 && os.Args[1] == compareWord {
		exit(compare(os.Stdout, os.Args[2], os.Args[3]))
	}
	o, err := parse(os.Args[1:], os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	exit(run(ctx, o))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// run measures everything and writes the reports, also of a run that was broken
// off.
func run(ctx context.Context, o options) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root, to mount")
	}
	for _, bin := range []*string{&o.bin, &o.old} {
		if *bin == "" {
			continue
		}
		path, err := filepath.Abs(*bin)
		if err == nil {
			_, err = os.Stat(path)
		}
		if err != nil {
			return fmt.Errorf("%w (make build)", err)
		}
		*bin = path
	}
	rep := report{SchemaVersion: 1, Machine: describeMachine(o), Rounds: o.rounds, SizeMiB: o.size >> 20}
	fmt.Print(rep.Machine.text())
	runErr := measure(ctx, o, &rep)
	if ctx.Err() != nil {
		runErr = errors.New("interrupted")
	}
	rep.judge()
	fmt.Print(rep.text())
	if err := rep.write(o.out); err != nil {
		return errors.Join(runErr, err)
	}
	if runErr == nil && o.check && rep.missed() {
		return errors.New("an aim is missed")
	}
	return runErr
}

// measure runs the loads at each place.
func measure(ctx context.Context, o options, rep *report) (err error) {
	for _, at := range []struct{ name, dir string }{{"memory", o.mem}, {"disk", o.disk}} {
		var todo []load
		some := loads(at.name)
		if o.all {
			some = append(some, moreLoads()...)
		}
		for _, l := range some {
			if at.dir != "" && o.rows.MatchString(at.name+"/"+l.name()) {
				todo = append(todo, l)
			}
		}
		var also []task
		for _, k := range tasks() {
			if at.dir != "" && slices.Contains(k.places, at.name) && o.rows.MatchString(at.name+"/"+k.name) {
				also = append(also, k)
			}
		}
		if len(todo)+len(also) == 0 {
			continue
		}
		if err := measurePlace(ctx, o, at.name, at.dir, todo, also, rep); err != nil {
			return err
		}
	}
	return nil
}

func measurePlace(ctx context.Context, o options, name, dir string, todo []load, also []task, rep *report) (err error) {
	p, err := newPlace(ctx, o, name, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	for _, l := range todo {
		row, err := p.measure(ctx, l, o.rounds)
		rep.Rows = append(rep.Rows, row)
		fmt.Print(row.text())
		if err != nil {
			return fmt.Errorf("%s/%s: %w", name, l.name(), err)
		}
	}
	for _, k := range also {
		row, err := p.do(ctx, k, o)
		rep.Rows = append(rep.Rows, row)
		fmt.Print(row.text())
		if err != nil {
			return fmt.Errorf("%s/%s: %w", name, k.name, err)
		}
	}
	return nil
}
